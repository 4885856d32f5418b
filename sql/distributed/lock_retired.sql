create or replace function fleet.lock_retired(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '0'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
begin
  -- Without a lock on this row, in which the archiver renews its lease.
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s has no table that %s may archive', p_partition, p_worker),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  -- Only the table of the coordinator: Citus lets no second role read shards that another has changed in the same transaction. Writers
  -- come through the coordinator, and have no rights on a retired table.
  perform set_config('citus.enable_ddl_propagation', 'off', true);
  execute format('alter table %s disable trigger user', v_table);
  perform set_config('citus.enable_ddl_propagation', 'on', true);
end
$$;

comment on function fleet.lock_retired(text, text) is
  'The form of fleet.lock_retired() for a distributed store: keeps writers that come through the coordinator out of a retired table '
  'until the end of the transaction.';
