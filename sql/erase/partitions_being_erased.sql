create or replace function fleet.partitions_being_erased() returns table (partition_name text, range_start timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.partition_name, p.range_start
  from fleet.hb_partitions p
  where p.archive_url is not null
    and exists (select from fleet.erasure_items i where i.partition_name = p.partition_name and i.archive_at is null)
  order by p.range_start;
$$;

comment on function fleet.partitions_being_erased() is
  'The partitions with an archive that an erasure has not been through yet. Their manifest may be ahead of the database, objects '
  'that were replaced may still be there, and nothing of theirs may be moved. Says nothing about devices. '
  'Example: select * from fleet.partitions_being_erased();';
