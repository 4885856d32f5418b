-- Like CREATE INDEX CONCURRENTLY: a transaction that read that the device is enrolled, or that is writing a row of it, holds a
-- lock on the table until it ends. Whoever takes one later sees that the device is gone.
create or replace function fleet.lockers_of_devices(p_among text[] default null) returns table (transaction text, pid integer)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select l.virtualtransaction, min(l.pid)
  from pg_locks l
  where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (
      l.relation = 'fleet.devices'::regclass
      or l.mode = 'RowExclusiveLock' and l.relation in (
        select t from fleet.tables_of_devices() t union all select 'fleet.device_heartbeats'::regclass
      )
    )
    and (p_among is null or l.virtualtransaction = any (p_among))
  group by l.virtualtransaction;
$$;

comment on function fleet.lockers_of_devices(text[]) is
  'The transactions that may still write rows of a device that was deleted a moment ago, because they have read fleet.devices or '
  'write to a table with rows of devices. With p_among: which of those have not ended.';
