create or replace function fleet.record_upload(
  p_partition text,
  p_worker text,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_manifest_format integer default 1
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_partition.step not in ('exported', 'uploaded') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is at step %s; it has to be exported before it is uploaded', p_partition, v_partition.step),
      hint = 'Call fleet.record_export() first.';
  end if;
  update fleet.hb_partitions
  set step = 'uploaded', archive_url = p_archive_url, checksum_sha256 = p_checksum_sha256, archive_bytes = p_archive_bytes,
    manifest_format = p_manifest_format
  where partition_name = p_partition;
  perform fleet.increment_counter('archive_bytes_pushed_total', p_archive_bytes);
end
$$;

comment on function fleet.record_upload(text, text, text, text, bigint, integer) is
  'Archiving, step uploaded: records where the Parquet file is, its SHA-256 and size, and the format of its manifest.';
