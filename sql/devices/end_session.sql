create or replace function fleet.end_session(p_session bytea, p_ends_at timestamptz) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from fleet.ended_sessions
  where ends_at < now();
  -- A cookie is valid for half a day, so no session has to be remembered for longer than a day, whatever p_ends_at says.
  insert into fleet.ended_sessions (session_hash, ends_at)
  values (p_session, least(p_ends_at, now() + interval '1 day'))
  on conflict (session_hash) do nothing;
end
$$;

comment on function fleet.end_session(bytea, timestamptz) is
  'Ends a session of the ops page on every server. Takes the SHA-256 of the text in its cookie and the time at which it would '
  'expire. Called by the server at logout.';
