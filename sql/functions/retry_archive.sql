create or replace function fleet.retry_archive(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state in ('active', 'restored') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; there is no failed archive to retry', p_partition, v_partition.state),
      hint = format('To archive it: select fleet.archive_partition(%L);', p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is %s already', p_partition, v_partition.state);
  end if;
  update fleet.hb_partitions
  set attempts = 0, next_attempt_at = now()
  where partition_name = p_partition and state = 'archive_failed';
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s waits for the archiver', p_partition);
end
$$;

comment on function fleet.retry_archive(text) is
  'Lets the archiver try a failed partition again at once. Example: select fleet.retry_archive(partition_name) from fleet.partition_health where state = ''archive_failed'';';
