create or replace function fleet.close_session(p_session_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.sessions s set ended_at = now() where s.session_id = p_session_id and s.ended_at is null and s.ends_at > now();
  if found then
    perform fleet.audit('session.ended', 'session:' || p_session_id);
    return true;
  end if;
  if not exists (select from fleet.sessions s where s.session_id = p_session_id) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no session %s', coalesce(p_session_id::text, 'null')),
      hint = 'select * from fleet.open_sessions;';
  end if;
  return false;
end
$$;

comment on function fleet.close_session(bigint) is
  'Ends a session of the ops page on every server. Returns false if it had already ended. '
  'Example: select fleet.close_session(session_id) from fleet.open_sessions where actor = ''ann@example.com'';';
