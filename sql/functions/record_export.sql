create or replace function fleet.record_export(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_columns jsonb default null,
  p_checksum_version integer default 1
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
  perform fleet.require_forms(p_partition, p_columns);
  update fleet.hb_partitions
  set step = 'exported', row_count = p_row_count, content_checksum = p_content_checksum, min_ts = p_min_ts, max_ts = p_max_ts,
    checksum_sha256 = null, archive_url = null, archive_bytes = null, proven_at = null,
    -- Without them, by an archiver of before 0.2, they are the table's: it has been as it is since it was detached.
    columns = coalesce(p_columns, (
      select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position)
      from fleet.archive_columns(format('fleet_detached.%I', p_partition)::regclass) c
    )),
    columns_at = coalesce(detached_at, clock_timestamp()),
    checksum_version = p_checksum_version, manifest_format = null
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz, jsonb, integer) is
  'Archiving, step exported: rows, checksum, bounds and columns of the snapshot that was copied.';
