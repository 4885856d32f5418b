-- relid is trusted only if the catalog agrees, because in a restored dump it is the oid of something else. The cheap cases come
-- first, because views call this for each partition.
create or replace function fleet.table_of(p fleet.hb_partitions) returns oid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_class record;
  v_schema name;
  v_table oid;
begin
  -- An attached partition has only the table whose oid was recorded, and a dropped one has none.
  if p.relid is null and p.state in ('active', 'restored', 'dropped') then
    return null;
  end if;
  select c.oid, c.relname, c.relispartition,
    c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached')) as is_ours
  into v_class
  from pg_class c
  where c.oid = p.relid and c.relkind = 'r';
  if found and v_class.relname = p.partition_name and v_class.is_ours then
    return v_class.oid;
  end if;
  -- Renamed or moved by hand.
  if v_class.relispartition and fleet.has_bounds(v_class.oid, p.range_start, p.range_end) then
    return v_class.oid;
  end if;
  if v_class.oid is not null and p.relid_seal = fleet_guard.seal(p.relid) then
    return v_class.oid;
  end if;
  foreach v_schema in array
    case when p.state in ('active', 'restored') then array['fleet', 'fleet_detached'] else array['fleet_detached', 'fleet'] end
  loop
    select c.oid into v_table
    from pg_class c
    where c.relnamespace = to_regnamespace(v_schema) and c.relname = p.partition_name and c.relkind = 'r'
      and (not c.relispartition or fleet.has_bounds(c.oid, p.range_start, p.range_end))
      and exists (
        select from pg_attribute a where a.attrelid = c.oid and a.attname = 'ts' and a.atttypid = 'timestamptz'::regtype
      );
    if found then
      return v_table;
    end if;
  end loop;
  if p.state in ('active', 'restored') and p.relid_seal is distinct from fleet_guard.seal(p.relid) then
    -- Renamed by hand before a dump.
    select a.relid into v_table
    from fleet.attached_partitions() a
    where (a.range_start, a.range_end) = (p.range_start, p.range_end);
    return v_table;
  end if;
  return null;
end
$$;

comment on function fleet.table_of(fleet.hb_partitions) is
  'The oid of a partition''s table, attached or retired, or null. Use it instead of fleet.hb_partitions.relid, which is the oid '
  'of something else after a dump was restored; the table is then found by name. '
  'Example: select p.partition_name, fleet.table_of(p)::regclass from fleet.hb_partitions p;';
