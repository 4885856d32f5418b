create or replace function fleet.confirm_adoption(p_source regclass) returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.confirm_import(p_source);
$$;

comment on function fleet.confirm_adoption(regclass) is 'Old name of fleet.confirm_import(); goes in 0.3.';
