create or replace function fleet.record_export(p_partition text, p_worker text) returns void
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
  if v_partition.counted is null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s has not been counted yet, so its export cannot be recorded', p_partition),
      hint = 'Call fleet.count_retired() first.';
  end if;
  update fleet.hb_partitions p
  set step = 'exported', row_count = (p.counted ->> 'row_count')::bigint,
    rows_sha256 = p.counted ->> 'rows_sha256', content_checksum = null,
    min_ts = (p.counted ->> 'min_ts')::timestamptz, max_ts = (p.counted ->> 'max_ts')::timestamptz,
    checksum_sha256 = null, archive_url = null, archive_bytes = null, proven_at = null,
    columns = p.counted -> 'columns', columns_at = coalesce(p.detached_at, clock_timestamp()),
    checksum_version = null, manifest_format = null,
    rows_hash = (p.counted ->> 'rows_hash')::numeric, counted = null
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.record_export(text, text) is
  'Archiving, step exported: from here on the archive has to match what fleet.count_retired() counted. What was recorded of an '
  'earlier archive of the day is cleared.';
