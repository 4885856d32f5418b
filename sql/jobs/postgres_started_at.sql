create or replace function fleet.postgres_started_at() returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case when pg_postmaster_start_time() <= clock_timestamp() then pg_postmaster_start_time() end;
$$;

comment on function fleet.postgres_started_at() is
  'When Postgres started; null if its clock ran ahead then. No job is late because it did not run before. '
  'Example: select now() - fleet.postgres_started_at();';
