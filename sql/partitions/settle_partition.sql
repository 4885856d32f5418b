create or replace function fleet.settle_partition(p_partition text, p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_was timestamptz := (select p.settled_at from fleet.hb_partitions p where p.partition_name = p_partition);
  v_rows bigint := fleet.settle_table(p_partition, p_now);
begin
  if v_was is null then
    perform fleet.audit('partition.settled', 'partition:' || p_partition, p_after => jsonb_build_object('rows', v_rows));
  end if;
  return v_rows;
end
$$;

comment on function fleet.settle_partition(text, timestamptz) is
  'Rewrites a past partition in the order of devices and time, drops its dedupe key, and closes it for new rows; returns its '
  'rows, or 0 if it was settled before. Readers of that day wait until it is done. Run by fleet.nightly(). '
  'Example: select partition_name, fleet.settle_partition(partition_name) from fleet.settle_plan() where action = ''settle'' limit 1;';
