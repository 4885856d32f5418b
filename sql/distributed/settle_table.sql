-- Each node sorts its own shards. The size is measured by the next night: Citus does not give it in the transaction that writes.
create or replace function fleet.settle_table(p_partition text, p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
-- CLUSTER sorts then. It would read a day that is larger than the memory in random order by the index.
set enable_indexscan = off
as $$
declare
  v_partition fleet.hb_partitions;
  v_table oid;
  v_index oid;
  v_plan record;
  v_rows bigint;
  v_since timestamptz;
begin
  perform fleet.not_in_future(p_now);
  v_partition := fleet.get_partition(p_partition);
  if v_partition.settled_at is not null then
    return 0;
  end if;
  select * into v_plan from fleet.settle_plan(p_now) s where s.partition_name = p_partition;
  if v_plan.action is null or v_plan.action not in ('settle', 'too_large', 'off') then
    raise exception using
      errcode = 'FL002',
      message = format(
        'partition %s is not settled: %s', p_partition,
        coalesce(v_plan.reason, 'heartbeats may still come for it, it is empty, or it is about to be retired')
      ),
      hint = 'The partitions that can be settled are in: select * from fleet.settle_plan();';
  end if;
  v_table := fleet.table_of(v_partition);
  v_index := fleet.newest_index(v_table);
  if v_index is null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s has no index by device and time, and is not settled', p_partition),
      hint = 'See select * from fleet.check_partitions() where check_name = ''partition_indexes'';';
  end if;

  perform fleet.close_partition(p_partition);
  v_since := clock_timestamp();  -- from here on readers wait
  execute format('cluster %s using %I', v_table::regclass, (select c.relname from pg_class c where c.oid = v_index));
  execute format('analyze %s', v_table::regclass);
  execute format('select count(*) from %s', v_table::regclass) into v_rows;
  update fleet.hb_partitions
  set settled_at = clock_timestamp()
  where partition_name = p_partition;
  perform fleet.record_event('partition.settle', p_partition, v_rows, fleet.elapsed_ms(v_since));
  return v_rows;
end
$$;

comment on function fleet.settle_table(text, timestamptz) is
  'The form of fleet.settle_table() for a distributed store: does what fleet.settle_partition() says.';
