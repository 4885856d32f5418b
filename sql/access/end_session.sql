create or replace function fleet.end_session(
  p_session bytea, p_ends_at timestamptz, p_is_admin boolean, p_request_id text, p_address text
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_session record;
begin
  update fleet.sessions s
  set ended_at = now()
  where s.session_hash = p_session and s.ended_at is null
  returning s.session_id, s.actor into v_session;
  if not found and p_is_admin then
    -- It was opened while the database was unreachable, so it has no row yet.
    insert into fleet.sessions as s (session_hash, actor, login, scopes, ends_at, ended_at)
    values (p_session, 'ADMIN_KEY', 'admin_key', array['read'], least(p_ends_at, now() + interval '1 day'), now())
    on conflict (session_hash) do nothing
    returning s.session_id, s.actor into v_session;
  end if;
  if v_session.session_id is not null then
    perform fleet.act('session', v_session.actor, null, null, p_request_id, p_address);
    perform fleet.audit('session.ended', 'session:' || v_session.session_id);
  end if;
end
$$;

comment on function fleet.end_session(bytea, timestamptz, boolean, text, text) is
  'Ends a session of the ops page on every server. Takes the SHA-256 of the text in its cookie and the time at which it would '
  'expire; one of ADMIN_KEY need not be known yet. Called by the server at logout.';
