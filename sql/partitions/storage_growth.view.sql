create or replace view fleet.storage_growth as
select (p.range_start at time zone 'UTC')::date as day, p.partition_name, p.state, p.row_count,
  fleet.bytes_of(p) as bytes_online,
  coalesce(p.archive_bytes, 0) as bytes_archived
from fleet.hb_partitions p
where p.range_start <= now()
order by p.range_start desc;

comment on view fleet.storage_growth is
  'Rows and bytes of each partition, by its first UTC day, online and in the archive, newest first. '
  'Example: select sum(bytes_online) from fleet.storage_growth;';
