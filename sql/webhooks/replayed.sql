create or replace function fleet.replayed(p_body jsonb, p_kind text) returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_set(p_body, '{data}', (p_body -> 'data') || jsonb_build_object('kind', 'replay', 'replay_of', p_kind));
$$;

comment on function fleet.replayed(jsonb, text) is 'The body of a message that is told again; p_kind is what it was: first or recovery.';
