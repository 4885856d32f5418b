create or replace function fleet.open_session(
  p_session bytea,
  p_actor text,
  p_login text,
  p_key_hash bytea,
  p_scopes text[],
  p_cohorts text[],
  p_ends_at timestamptz,
  p_address text,
  p_user_agent text,
  p_request_id text
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key_id bigint := (select k.key_id from fleet.find_api_key(p_key_hash) k);
begin
  if p_actor is null or p_actor !~ '^[^[:cntrl:]]+$' or length(p_actor) > 400 or (p_actor = 'ADMIN_KEY') <> (p_login = 'admin_key') then
    raise exception using
      errcode = 'FL422',
      message = 'actor must be a name of 1 to 400 characters, and ADMIN_KEY only with that key',
      hint = 'The identity provider gave somebody another name.';
  end if;
  if p_login = 'api_key' and v_key_id is null then
    return false;
  end if;
  insert into fleet.sessions (session_hash, actor, login, key_id, key_hash, scopes, cohorts, address, user_agent, ends_at)
  values (
    p_session, p_actor, p_login, v_key_id, p_key_hash, p_scopes, p_cohorts, p_address, left(p_user_agent, 200),
    -- No login lasts for longer than a day, whatever p_ends_at says.
    least(p_ends_at, now() + interval '1 day')
  );
  perform fleet.act('session', p_actor, null, null, p_request_id, p_address);
  perform fleet.audit('session.opened', 'session:' || currval(pg_get_serial_sequence('fleet.sessions', 'session_id')),
    p_after => jsonb_build_object('login', p_login, 'scopes', p_scopes, 'cohorts', p_cohorts));
  return true;
end
$$;

comment on function fleet.open_session(bytea, text, text, bytea, text[], text[], timestamptz, text, text, text) is
  'Records a login to the ops page. Takes the SHA-256 of the cookie and of the API key, if it was one. Returns false if that key is '
  'not valid any more. Called by the server.';
