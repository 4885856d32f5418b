create or replace function fleet.note_storage(p_now timestamptz default now()) returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  insert into fleet.storage_daily as d (
    day, rows_online, bytes_online, bytes_archived, bytes_pushed, database_bytes, noted_at
  )
  select p_now::date, t.rows_online, t.bytes_online, t.bytes_archived,
    coalesce((select c.total from fleet.counters c where c.counter = 'archive_bytes_pushed_total'), 0),
    pg_database_size(current_database()), p_now
  from (
    select
      -- A partition is counted when its day is over. Until then the last ANALYZE gives an estimate.
      coalesce(sum(coalesce(p.row_count, greatest(c.reltuples, 0)::bigint)) filter (where c.oid is not null), 0) as rows_online,
      coalesce(sum(pg_total_relation_size(c.oid)), 0) as bytes_online,
      coalesce(sum(p.archive_bytes) filter (where p.proven_at is not null), 0) as bytes_archived
    from fleet.hb_partitions p
    left join pg_class c on c.oid = fleet.table_of(p)
  ) t
  on conflict (day) do update
    set rows_online = excluded.rows_online,
      bytes_online = excluded.bytes_online,
      bytes_archived = excluded.bytes_archived,
      bytes_pushed = excluded.bytes_pushed,
      database_bytes = excluded.database_bytes,
      noted_at = excluded.noted_at
  returning d.bytes_online;
$$;

comment on function fleet.note_storage(timestamptz) is
  'Records today''s sizes in fleet.storage_daily; returns the size of the online partitions in bytes. Run by fleet.nightly().';
