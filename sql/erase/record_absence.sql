create or replace function fleet.record_absence(p_partition text, p_worker text, p_device_ids bigint[], p_checksum_sha256 text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_rows bigint := 0;
begin
  v_partition := fleet.check_erasure_lease(p_partition, p_worker, p_device_ids);
  if v_partition.state in ('detached', 'archiving', 'archived', 'archive_failed') then
    select coalesce(sum(d.deleted), 0) into v_rows from fleet.delete_heartbeats(p_partition, p_device_ids) d;
  end if;
  if p_checksum_sha256 is distinct from v_partition.checksum_sha256 or v_rows > 0 and v_partition.state = 'archived' then
    raise exception using
      errcode = 'FL010',
      message = format(
        '%s says that the archive of %s has no row of the erased devices, but %s; nothing was deleted', p_worker, p_partition,
        case
          when v_rows > 0 then format('its table has %s', v_rows)
          else format('it read an object with SHA-256 %s, not %s', p_checksum_sha256, v_partition.checksum_sha256)
        end
      ),
      hint = 'Check the archive: npm run archive -- verify';
  end if;
  update fleet.erasure_items i
  set archive_at = now(), last_error = null, attempts = 0, next_attempt_at = null,
    online_at = case when v_partition.state not in ('active', 'restored') then coalesce(i.online_at, now()) else i.online_at end,
    rows_online = i.rows_online + v_rows
  from fleet.erasures e
  where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is null
    and e.erasure_id = i.erasure_id and e.device_id = any (p_device_ids);
  update fleet.hb_partitions
  set lease_owner = null, lease_until = null
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_absence(text, text, bigint[], text) is
  'Records that an archive, read and found to be the one that was proven, holds no row of these devices, and gives the partition '
  'back. Refused if its table, which is still there, has such rows.';
