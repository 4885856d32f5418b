create or replace function fleet.end_session(p_session bytea, p_ends_at timestamptz) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from fleet.ended_sessions
  where ends_at < now();
  -- A cookie holds for half a day; however far away its end is said to be, it is not remembered for longer than a day.
  insert into fleet.ended_sessions (session_hash, ends_at)
  values (p_session, least(p_ends_at, now() + interval '1 day'))
  on conflict (session_hash) do nothing;
end
$$;

comment on function fleet.end_session(bytea, timestamptz) is
  'Ends a session of the ops page on every server: the SHA-256 of what its cookie says, and when it would have ended by itself. Called by the server at a logout.';
