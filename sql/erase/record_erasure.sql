-- Postgres itself sees every row that goes: the archiver copies them into the table of fleet.begin_erasure(). They must all be of
-- devices that are being erased, and count, times and row hash of the archive fall by exactly them. So an archiver cannot use
-- this to lose other rows: a restore would find another row hash.
create or replace function fleet.record_erasure(
  p_partition text,
  p_worker text,
  p_device_ids bigint[],
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_manifest_format integer,
  p_rows_sha256 text,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_leftovers text[]
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  c_revision constant text := '(?:_r([0-9]+))?\.parquet$';
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_erased record;
  v_strange bigint;
  v_is_retired boolean;
  v_in_table bigint := 0;
  v_proofs smallint := (select s.proofs_needed from fleet.settings s);
begin
  v_partition := fleet.check_erasure_lease(p_partition, p_worker, p_device_ids);
  v_table := to_regclass(format('fleet.%I', left('erasing_' || p_partition, 63)));
  if v_table is null or p_device_ids is null or cardinality(p_device_ids) = 0 then
    raise exception using
      errcode = 'FL002',
      message = format('%s has not begun to erase devices from the archive of %s', p_worker, p_partition),
      hint = 'Call fleet.begin_erasure() first.';
  end if;
  if p_checksum_sha256 is null or p_checksum_sha256 !~ '^[0-9a-f]{64}$' or p_rows_sha256 is null
    or p_rows_sha256 !~ '^[0-9a-f]{64}$' or p_archive_bytes is null
    or regexp_replace(p_archive_url, c_revision, '') is distinct from regexp_replace(v_partition.archive_url, c_revision, '')
    or coalesce(substring(p_archive_url from c_revision)::integer, 1)
      <= coalesce(substring(v_partition.archive_url from c_revision)::integer, 1) then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a later revision of %s', coalesce(p_archive_url, 'null'), v_partition.archive_url),
      hint = 'Give the place, the checksums and the size of the revision without the erased devices.';
  end if;

  -- What may be deleted: objects of this day, and not the new one.
  if p_leftovers is null or exists (
    select from unnest(p_leftovers) k (key)
    where k.key is null
      or k.key !~ format('^(device_heartbeats/|device_heartbeats/superseded/|superseded/)date=%s/[^/]+$', v_partition.range_start::date)
      or right(p_archive_url, length(k.key) + 1) = '/' || k.key
  ) then
    raise exception using
      errcode = 'FL422',
      message = format('p_leftovers names an object that the archive of %s does not replace', p_partition),
      hint = 'Give the keys of objects of this day in the store.';
  end if;

  -- The archiver may insert until here.
  execute format('revoke all on %s from fleet_archiver', v_table);
  execute format('alter table %s disable row level security', v_table);
  execute format('select count(*) from %s where (device_id = any ($1)) is not true', v_table)
  into v_strange using p_device_ids;
  select * into v_erased from fleet.count_rows(v_table);
  if v_strange > 0 or p_row_count is distinct from v_partition.row_count - v_erased.row_count
    or (p_min_ts is null) is distinct from (p_row_count = 0) or (p_max_ts is null) is distinct from (p_row_count = 0)
    or p_min_ts < v_partition.min_ts or p_max_ts > v_partition.max_ts or p_min_ts > p_max_ts
    or p_row_count > 0 and v_erased.min_ts > v_partition.min_ts and p_min_ts <> v_partition.min_ts
    or p_row_count > 0 and v_erased.max_ts < v_partition.max_ts and p_max_ts <> v_partition.max_ts then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the new archive of %s is not the old one without the erased devices; the old one is kept', p_partition
      ),
      detail = format(
        'rows %s, erased %s (%s of them of other devices), new %s; from %s to %s, new %s to %s', v_partition.row_count,
        v_erased.row_count, v_strange, coalesce(p_row_count::text, 'null'), v_partition.min_ts, v_partition.max_ts, p_min_ts,
        p_max_ts
      ),
      hint = 'Check the archive: npm run archive -- verify';
  end if;

  -- A retired table that is not dropped yet. It stays equal to its archive.
  v_is_retired := v_partition.state in ('detached', 'archiving', 'archived', 'archive_failed');
  if v_is_retired then
    select coalesce(sum(d.deleted), 0) into v_in_table from fleet.delete_heartbeats(p_partition, p_device_ids) d;
  end if;
  update fleet.erasure_items i
  set recorded_at = now(), rows_archived = i.rows_archived + d.rows, leftovers = p_leftovers,
    replaced = jsonb_build_object(
      'archive_url', v_partition.archive_url, 'checksum_sha256', v_partition.checksum_sha256,
      'archive_bytes', v_partition.archive_bytes, 'row_count', v_partition.row_count
    ),
    -- Whether a second proof is needed is decided now, because later the old object is gone.
    confirmed_at = case when v_proofs = 1 then now() end,
    confirmed_by = case when v_proofs = 1 then 'nobody, because proofs_needed was 1' end,
    last_error = null, attempts = 0, next_attempt_at = null,
    online_at = case when v_is_retired then coalesce(i.online_at, now()) else i.online_at end,
    rows_online = i.rows_online + case when v_is_retired then least(d.rows, v_in_table) else 0 end
  from fleet.erasures e
  cross join lateral (
    select count(*) as rows from fleet.rows_of_device(v_table, e.device_id)
  ) d
  where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is null
    and e.erasure_id = i.erasure_id and e.device_id = any (p_device_ids);
  update fleet.hb_partitions p
  set archive_url = p_archive_url, checksum_sha256 = p_checksum_sha256, archive_bytes = p_archive_bytes,
    manifest_format = p_manifest_format, rows_sha256 = p_rows_sha256, content_checksum = null, checksum_version = null,
    row_count = p_row_count, min_ts = p_min_ts, max_ts = p_max_ts,
    rows_hash = p.rows_hash - v_erased.rows_hash,
    counted = null,
    proven_at = now(), confirmed_at = null, confirmed_by = null,
    lease_owner = case when v_proofs = 1 then p.lease_owner end,
    lease_until = case when v_proofs = 1 then p.lease_until end
  where p.partition_name = p_partition;
  execute format('drop table %s', v_table);
  perform fleet.increment_counter('archive_bytes_pushed_total', p_archive_bytes);
  perform fleet.record_event('partition.erase', p_partition, v_erased.row_count, p_detail => p_archive_url);
  return v_proofs = 1;
end
$$;

comment on function fleet.record_erasure(
  text, text, bigint[], text, text, bigint, integer, text, bigint, timestamptz, timestamptz, text[]
) is
  'Records a proven revision of an archive without the devices of an erasure, and deletes them from a retired table that is '
  'still there. The erased rows are in the table of fleet.begin_erasure(): Postgres checks that they are all of these devices and '
  'that the archive has exactly these fewer. Returns whether the objects in p_leftovers may be deleted now: if '
  'settings.proofs_needed is 2, a second proof comes first.';
