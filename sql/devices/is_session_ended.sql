create or replace function fleet.is_session_ended(p_session bytea) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from fleet.ended_sessions e where e.session_hash = p_session);
$$;

comment on function fleet.is_session_ended(bytea) is
  'Whether a session of the ops page was ended by a logout on any server. Takes the SHA-256 of the text in its cookie.';
