-- For a database that is older than its store: it was restored from a backup, and names an object that was replaced since.
create or replace function fleet.forget_archive(p_partition text, p_reason text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format('the archive of %s is not forgotten: the reason is empty', coalesce(p_partition, 'null')),
      hint = 'Say why: select fleet.forget_archive(''…'', ''restored from the backup of Monday'');';
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'dropped' or v_partition.archive_url is null or v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format(
        'the archive of %s is not forgotten: the partition is %s%s', p_partition, v_partition.state,
        case
          when v_partition.archive_url is null then ' and has none'
          when v_partition.held_reason is not null then format(' and held (%s)', v_partition.held_reason)
          else ''
        end
      ),
      hint = 'Only the archive of a dropped partition that is not held can be registered again.';
  end if;
  -- fleet.register_archive() takes any archive of a dropped partition that has no rows.
  update fleet.hb_partitions
  set row_count = 0, min_ts = null, max_ts = null, rows_hash = null, confirmed_at = null, confirmed_by = null, lease_owner = null,
    lease_until = null
  where partition_name = p_partition;
  perform fleet.record_event(
    'partition.forget', p_partition, v_partition.row_count,
    p_detail => format(
      '%s, sha256 %s; by %s: %s', v_partition.archive_url, v_partition.checksum_sha256, (fleet.current_actor()).actor, p_reason
    )
  );
  perform fleet.audit(
    'partition.archive_forgotten', 'partition:' || p_partition,
    jsonb_build_object(
      'archive_url', v_partition.archive_url, 'sha256', v_partition.checksum_sha256, 'rows', v_partition.row_count
    ),
    jsonb_build_object('reason', p_reason)
  );
end
$$;

comment on function fleet.forget_archive(text, text) is
  'Makes the database forget which rows the archive of a dropped partition has, and touches nothing in the store. Then npm run '
  'archive -- register proves and registers what the store has; until then the archive cannot be restored. For a database that was restored from a backup and names an '
  'object that was replaced since. The event keeps what was forgotten. '
  'Example: select fleet.forget_archive(''device_heartbeats_p2026_08_15'', ''restored from the backup of Monday'');';
