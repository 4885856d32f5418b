create or replace function fleet.bytes_of(p fleet.hb_partitions) returns bigint
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '20ms'
as $$
declare
  v_table oid := case when p.state <> 'dropped' then fleet.table_of(p) end;
begin
  if v_table is null then
    return 0;
  end if;
  if exists (select 1 from pg_catalog.pg_dist_partition d where d.logicalrelid = v_table) then
    return coalesce(citus_total_relation_size(v_table::regclass, false), 0);
  end if;
  return pg_total_relation_size(v_table);
exception when lock_not_available or object_not_in_prerequisite_state then
  return coalesce(p.bytes_size, 0);
end
$$;

comment on function fleet.bytes_of(fleet.hb_partitions) is
  'The form of fleet.bytes_of() for a distributed store: the size of a partition on all nodes with its indexes, in bytes; 0 if it is '
  'dropped.';
