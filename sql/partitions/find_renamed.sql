-- Neither the oid nor the name identifies such a table any more, so its rows have to. If two tables fit, neither is chosen.
create or replace function fleet.find_renamed(p fleet.hb_partitions) returns oid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_table record;
  v_fits boolean;
  v_found oid[] := array[]::oid[];
begin
  if p.state in ('active', 'restored', 'dropped') then
    return null;
  end if;
  for v_table in
    select c.oid, c.relname
    from pg_class c
    where c.relnamespace = to_regnamespace('fleet_detached') and c.relkind = 'r' and not c.relispartition
      and not exists (select from fleet.hb_partitions o where o.partition_name = c.relname)
      and exists (
        select from pg_attribute a where a.attrelid = c.oid and a.attname = 'ts' and a.atttypid = 'timestamptz'::regtype
      )
  loop
    execute format('select min(ts) >= $1 and max(ts) < $2 from fleet_detached.%I', v_table.relname)
    into v_fits
    using p.range_start, p.range_end;
    if v_fits then
      v_found := v_found || v_table.oid;
    end if;
  end loop;
  return case when cardinality(v_found) = 1 then v_found[1] end;
end
$$;

comment on function fleet.find_renamed(fleet.hb_partitions) is
  'Finds a retired table that was renamed by hand before a dump: the only table in fleet_detached whose name is not that of a '
  'partition and whose heartbeats are all in the range of this one. Null if there is none, or more than one.';
