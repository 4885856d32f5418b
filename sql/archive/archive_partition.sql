create or replace function fleet.archive_partition(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'archive_failed' then
    return fleet.retry_archive(p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is already %s', p_partition, v_partition.state);
  end if;
  if v_partition.state in ('active', 'restored') then
    perform fleet.retire_partition(p_partition);
    perform fleet.audit(
      'partition.archive_requested', 'partition:' || p_partition, jsonb_build_object('state', v_partition.state)
    );
  end if;
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s is waiting for the archiver', p_partition);
end
$$;

comment on function fleet.archive_partition(text) is
  'Retires one past partition now and wakes the archiver. '
  'Example: select fleet.archive_partition(partition_name) from fleet.partition_health where range_start <= current_date - 60 '
  'and range_end > current_date - 60;';
