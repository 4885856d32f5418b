create or replace function fleet.nodes_away() returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select null::text;
$$;

comment on function fleet.nodes_away() is
  'The nodes of a distributed store that do not answer; null if all do, and always null in a plain store, which has no nodes.';
