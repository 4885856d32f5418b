create or replace function fleet.source_table(a fleet.imports) returns oid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case
    when a.relid_seal = fleet_guard.seal(a.relid) then (select c.oid from pg_class c where c.oid = a.relid)
    else (select c.oid from pg_class c where c.oid = to_regclass(a.source) and c.relkind = 'r')
  end;
$$;

comment on function fleet.source_table(fleet.imports) is
  'The oid of a table that is being imported, or null if it is gone. Found by name if fleet.imports.relid came with a dump of '
  'another cluster.';
