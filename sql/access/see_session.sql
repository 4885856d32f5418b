create or replace function fleet.see_session(p_session bytea)
returns table (actor text, login text, scopes text[], cohorts text[], is_open boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Once a minute, and never waiting for another request of the same session.
  update fleet.sessions s
  set last_seen_at = now()
  where s.session_id = (
    select u.session_id
    from fleet.sessions u
    where u.session_hash = p_session and u.ended_at is null and u.last_seen_at < now() - interval '1 minute'
    for no key update skip locked
  );
  return query select f.actor, f.login, f.scopes, f.cohorts, f.is_open from fleet.find_session(p_session) f;
end
$$;

comment on function fleet.see_session(bytea) is
  'As fleet.find_session(), and notes that the session was used. Called by the server for each request with a session.';
