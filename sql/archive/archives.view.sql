create or replace view fleet.archives as
select p.partition_name, p.range_start, p.range_end, p.state, p.row_count, p.min_ts, p.max_ts, p.archive_bytes,
  p.checksum_sha256, p.content_checksum, p.archive_url, p.proven_at,
  p.columns, p.checksum_version, p.manifest_format, p.confirmed_at, p.confirmed_by, p.rows_sha256
from fleet.hb_partitions p
where p.proven_at is not null and p.archive_url is not null
order by p.range_start;

comment on view fleet.archives is
  'Every proven archive: date range, rows, checksums, location, columns, and when it was proven and confirmed. '
  'Example: select * from fleet.archives where range_start >= now() - interval ''1 year'';';
