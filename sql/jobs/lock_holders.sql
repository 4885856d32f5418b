create or replace function fleet.lock_holders(p_lock text) returns setof integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select l.pid
  from pg_locks l
  where l.locktype = 'advisory' and l.granted and l.objsubid = 1
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('fleet.' || p_lock, 0);
$$;

comment on function fleet.lock_holders(text) is
  'The backend that holds the lock of maintenance, reconcile or import; no row if it is free. Example: select * from '
  'fleet.lock_holders(''maintenance'');';
