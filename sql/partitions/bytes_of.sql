-- Asking for the size of a table locks it. Views and metrics must not wait until a day is settled, so then they say what was
-- measured last.
create or replace function fleet.bytes_of(p fleet.hb_partitions) returns bigint
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '20ms'
as $$
begin
  if p.state = 'dropped' then
    return 0;
  end if;
  return coalesce(pg_total_relation_size(fleet.table_of(p)), 0);
exception when lock_not_available then
  return coalesce(p.bytes_size, 0);
end
$$;

comment on function fleet.bytes_of(fleet.hb_partitions) is
  'The size on disk of a partition with its indexes, in bytes; 0 if it is dropped. While the table is locked against readers, the '
  'size that was measured last. Example: select partition_name, fleet.bytes_of(p) from fleet.hb_partitions p;';
