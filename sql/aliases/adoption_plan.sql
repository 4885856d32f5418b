create or replace function fleet.adoption_plan(
  p_source regclass,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null
) returns table (item text, detail text, rows bigint)
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select p.item, p.detail, p.rows from fleet.import_plan(p_source, p_columns, p_unknown_devices, p_oldest) p;
$$;

comment on function fleet.adoption_plan(regclass, jsonb, text, timestamptz) is 'Old name of fleet.import_plan(); goes in 0.3.';
