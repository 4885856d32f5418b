create or replace function fleet.erasures_to_confirm()
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, device_ids bigint[], archive_url text,
  checksum_sha256 text, rows_sha256 text, row_count bigint, columns jsonb, old_archive_url text, old_checksum_sha256 text,
  old_row_count bigint
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.partition_name, p.range_start, p.range_end, array_agg(e.device_id order by e.device_id), p.archive_url,
    p.checksum_sha256, p.rows_sha256, p.row_count, p.columns, min(i.replaced ->> 'archive_url'),
    min(i.replaced ->> 'checksum_sha256'), min((i.replaced ->> 'row_count')::bigint)
  from fleet.erasure_items i
  join fleet.erasures e using (erasure_id)
  join fleet.hb_partitions p using (partition_name)
  where i.recorded_at is not null and i.archive_at is null and i.confirmed_at is null
  group by p.partition_name
  order by p.range_start;
$$;

comment on function fleet.erasures_to_confirm() is
  'The archives without erased devices whose old object is still there and that no second login has compared with it.';
