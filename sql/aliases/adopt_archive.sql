create or replace function fleet.adopt_archive(
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
  p_manifest_format integer default 1
) returns boolean
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.register_archive(
    p_partition, p_range_start, p_range_end, p_row_count, p_content_checksum, p_min_ts, p_max_ts, p_archive_url,
    p_checksum_sha256, p_archive_bytes, p_columns, p_columns_at, p_checksum_version, p_manifest_format
  );
$$;

comment on function fleet.adopt_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
) is 'Old name of fleet.register_archive(); goes in 0.3.';
