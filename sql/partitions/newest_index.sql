-- From the catalog alone; see fleet.dedupe_index().
create or replace function fleet.newest_index(p_table oid) returns oid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select i.indexrelid
  from pg_index i
  join pg_attribute d on d.attrelid = i.indrelid and d.attnum = i.indkey[0] and d.attname = 'device_id'
  join pg_attribute t on t.attrelid = i.indrelid and t.attnum = i.indkey[1] and t.attname = 'ts'
  where i.indrelid = p_table and not i.indisunique and i.indisvalid and i.indnkeyatts = 2 and i.indpred is null
    and i.indoption[0] = 0 and i.indoption[1] = 3  -- descending, nulls first
  order by i.indexrelid
  limit 1;
$$;

comment on function fleet.newest_index(oid) is
  'The valid index of a partition by (device_id, ts desc), by which a device''s newest heartbeats are read; null if it has none.';
