create or replace function fleet.record_export(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if p_min_ts < v_partition.range_start or p_max_ts >= v_partition.range_end then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s covers %s to %s, its export %s to %s',
        p_partition, v_partition.range_start, v_partition.range_end, p_min_ts, p_max_ts
      ),
      hint = 'The table was changed after it was retired. Hold it and look: select fleet.hold_partition(name, reason);';
  end if;
  update fleet.hb_partitions
  set step = 'exported', row_count = p_row_count, content_checksum = p_content_checksum, min_ts = p_min_ts, max_ts = p_max_ts,
    checksum_sha256 = null, archive_url = null, archive_bytes = null, proven_at = null
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz) is
  'Archiving, step exported: rows, checksum and bounds of the snapshot that was copied.';
