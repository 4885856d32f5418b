-- For a new database that takes over archives whose own database was lost.
create or replace function fleet.register_archive(
  p_partition text,
  p_range_start timestamptz,
  p_range_end timestamptz,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_columns jsonb default null,
  p_columns_at timestamptz default null,
  p_checksum_version integer default 1,
  p_manifest_format integer default 1,
  p_rows_sha256 text default null
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known fleet.hb_partitions;
  v_table regclass;
  v_has_rows boolean := false;
begin
  perform fleet.check_archive_place(p_range_start, p_range_end, p_archive_url);
  perform fleet.require_forms(p_partition, p_columns);
  perform fleet.note_columns();
  select * into v_known
  from fleet.hb_partitions p
  where (p.range_start < p_range_end and p.range_end > p_range_start) or p.partition_name = p_partition
  order by p.partition_name = p_partition desc
  limit 1
  for update;
  if v_known.checksum_sha256 = p_checksum_sha256 and v_known.archive_url = p_archive_url
    and not (v_known.state = 'dropped' and v_known.row_count = 0 and p_row_count > 0) then  -- fleet.forget_archive()
    return false;
  end if;

  -- A new database has empty partitions for the days within its retention.
  if v_known.partition_name = p_partition and v_known.state = 'active' and fleet.table_of(v_known) is not null
    and p_range_end <= now()
    and (v_known.range_start, v_known.range_end) = (p_range_start, p_range_end) then
    v_table := fleet.table_of(v_known);
    if not fleet.is_distributed() then
      -- Takes the same lock as LOCK TABLE, which would require the right to write.
      execute format('alter table %s disable row level security', v_table);
    end if;
    execute format('select exists (select 1 from %s)', v_table) into v_has_rows;
    if not v_has_rows and fleet.is_distributed() then
      -- Citus lets no second role, here that of the guard, read a table that this transaction has locked.
      raise exception using
        errcode = 'FL409',
        message = format(
          'the archive of %s is not registered: its day is online and empty, and a distributed store cannot exchange it', p_partition
        ),
        hint = 'Register archives before you distribute a store; later, when the retention of their days has ended.';
    end if;
    if not v_has_rows then
      update fleet.hb_partitions set is_proven_empty = true where partition_name = p_partition;
      execute format('drop table %s', v_table);
      update fleet.hb_partitions
      set state = 'dropped', relid = null, dropped_at = now(), bytes_size = 0, row_count = 0
      where partition_name = p_partition
      returning * into v_known;
    end if;
  end if;

  if v_known.partition_name is not null and not (
    v_known.partition_name = p_partition and v_known.state = 'dropped' and v_known.row_count = 0
  ) then
    raise exception using
      errcode = 'FL409',
      message = format(
        'the archive of %s is not registered: the database has partition %s, which is %s%s',
        p_partition, v_known.partition_name, v_known.state, case when v_has_rows then ' and holds rows' else '' end
      ),
      hint = format('See select * from fleet.partition_health where partition_name = %L;', v_known.partition_name);
  end if;

  insert into fleet.hb_partitions (
    partition_name, range_start, range_end, state, step, row_count, bytes_size, min_ts, max_ts, checksum_sha256, content_checksum,
    archive_url, archive_bytes, archived_at, proven_at, dropped_at, columns, columns_at, checksum_version, manifest_format,
    rows_sha256
  ) values (
    p_partition, p_range_start, p_range_end, 'dropped', 'proven', p_row_count, 0, p_min_ts, p_max_ts, p_checksum_sha256,
    p_content_checksum, p_archive_url, p_archive_bytes, now(), now(), now(), p_columns, p_columns_at, p_checksum_version,
    p_manifest_format, p_rows_sha256
  )
  on conflict (partition_name) do update
    set state = excluded.state, step = excluded.step, row_count = excluded.row_count, min_ts = excluded.min_ts,
      max_ts = excluded.max_ts, checksum_sha256 = excluded.checksum_sha256, content_checksum = excluded.content_checksum,
      archive_url = excluded.archive_url, archive_bytes = excluded.archive_bytes, archived_at = excluded.archived_at,
      proven_at = excluded.proven_at, is_proven_empty = false, last_error = null,
      columns = excluded.columns, columns_at = excluded.columns_at, checksum_version = excluded.checksum_version,
      manifest_format = excluded.manifest_format, rows_sha256 = excluded.rows_sha256, rows_hash = null;
  perform fleet.reopen_erasures(p_partition);
  perform fleet.record_event('partition.register', p_partition, p_row_count, p_detail => p_archive_url);
  return true;
end
$$;

comment on function fleet.register_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer, text
) is
  'Registers an archive in a database that did not write it, after the archiver has read it back and proven it. Returns false '
  'if it was already registered. Used by: npm run archive -- register.';
