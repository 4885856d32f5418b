create or replace function fleet.is_distributed() returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select to_regclass('fleet.online_ranges') is not null;
$$;

comment on function fleet.is_distributed() is
  'Whether this store is distributed with Citus, or is being distributed; true on each of its nodes. '
  'Example: select fleet.is_distributed();';
