create or replace function fleet.forget_adoption(p_source text) returns boolean
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.forget_import(p_source);
$$;

comment on function fleet.forget_adoption(text) is 'Old name of fleet.forget_import(); goes in 0.3.';
