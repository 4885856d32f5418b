create or replace function fleet.record_proof(
  p_partition text,
  p_worker text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_rows_sha256 text default null
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
  if v_partition.step is distinct from 'uploaded' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is at step %s; it has to be uploaded before it is proven', p_partition, v_partition.step),
      hint = 'Call fleet.record_upload() first.';
  end if;
  if (p_checksum_sha256, p_rows_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.rows_sha256, v_partition.content_checksum, v_partition.row_count,
    v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the archive of %s, read back, differs from its rows; the partition is kept', p_partition),
      detail = format(
        'sha256 %s, read back %s; %s, read back %s; rows %s, read back %s; from %s to %s, read back %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256,
        fleet.rows_proof(v_partition.rows_sha256, v_partition.content_checksum),
        fleet.rows_proof(p_rows_sha256, p_content_checksum),
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = 'The next attempt exports and uploads it again. If this happens again, check the object store.';
  end if;
  update fleet.hb_partitions
  set step = 'proven', state = 'archived', proven_at = now(), archived_at = now(), attempts = 0, next_attempt_at = null,
    confirmed_at = null, confirmed_by = null,
    last_error = null
  where partition_name = p_partition;
  perform fleet.increment_counter('partitions_archived_total');
  perform fleet.increment_counter('hb_partition_archived_total');
  perform fleet.record_event(
    'partition.archive.end', p_partition, p_row_count, p_detail => v_partition.archive_url,
    p_duration_ms => fleet.elapsed_ms(coalesce(
      (
        select max(e.at) from fleet.events e
        where e.event = 'partition.archive.start' and e.partition_name = p_partition
      ),
      clock_timestamp()
    ))
  );
end
$$;

comment on function fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz, text) is
  'Archiving, step proven: compares what was read back from the store with what was exported. Sets state archived only if '
  'everything is equal. p_content_checksum is for archives of manifest formats 1 and 2, which have no rows_sha256.';
