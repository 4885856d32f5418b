create or replace function fleet.retry_archive(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_found record;
begin
  -- This takes many seconds for a large day, so it happens before the partition's row is locked.
  select * into v_found
  from fleet.hb_partitions p
  cross join lateral fleet.compare_with_archive(p.partition_name)
  where p.partition_name = p_partition and p.state = 'archived';
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state in ('active', 'restored') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; there is no failed archive to retry', p_partition, v_partition.state),
      hint = format('To archive it: select fleet.archive_partition(%L);', p_partition);
  end if;
  if v_partition.state = 'archived' and v_found.differs then
    -- As with a restored day, what is known about the archive is kept until the next export.
    update fleet.hb_partitions
    set state = 'detached', step = null, attempts = 0, next_attempt_at = now(), last_error = null,
      lease_owner = null, lease_until = null
    where partition_name = p_partition;
    perform fleet.record_event(
      'partition.archive.again', p_partition, v_found.row_count,
      p_detail => format(
        'by %s: the table differs from its archive, which has %s rows', (fleet.current_actor()).actor, v_partition.row_count
      )
    );
    perform fleet.audit(
      'partition.archive_retried', 'partition:' || p_partition,
      jsonb_build_object('state', v_partition.state, 'rows', v_partition.row_count),
      jsonb_build_object('rows', v_found.row_count)
    );
    perform pg_notify('fleet_archiver', p_partition);
    return format('partition %s differs from its archive and is waiting for the archiver', p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is already %s', p_partition, v_partition.state);
  end if;
  update fleet.hb_partitions
  set attempts = 0, next_attempt_at = now()
  where partition_name = p_partition and state = 'archive_failed';
  if found then
    perform fleet.audit(
      'partition.archive_retried', 'partition:' || p_partition,
      jsonb_build_object('state', v_partition.state, 'attempts', v_partition.attempts)
    );
  end if;
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s is waiting for the archiver', p_partition);
end
$$;

comment on function fleet.retry_archive(text) is
  'Makes the archiver retry a failed partition at once, or archive a partition again whose table was changed after its proof. '
  'Example: select fleet.retry_archive(partition_name) from fleet.partition_health where state = ''archive_failed'';';
