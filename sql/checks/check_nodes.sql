create or replace function fleet.check_nodes(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select null::text, null::text, null::text, null::text
  where fleet.not_in_future(p_now) <> p_now;
$$;

comment on function fleet.check_nodes(timestamptz) is
  'The part of fleet.check() about the nodes of a distributed store. A plain store has none, so this returns no row there.';
