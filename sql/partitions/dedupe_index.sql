-- From the catalog alone: pg_get_indexdef() would lock the table, and wait for a partition that is being settled.
create or replace function fleet.dedupe_index(p_table oid) returns oid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select i.indexrelid
  from pg_index i
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attname = 'device_id'
  where i.indrelid = p_table and i.indisunique and i.indisvalid
    and i.indnkeyatts = 2 and i.indkey[1] = 0  -- an expression
    and i.indpred is null
  order by i.indexrelid
  limit 1;
$$;

comment on function fleet.dedupe_index(oid) is
  'The valid unique index of a partition by which ingest finds duplicates; null if the partition has none, as when it is settled.';
