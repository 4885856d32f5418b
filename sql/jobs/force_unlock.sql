-- Runs with the rights of the caller, so pg_signal_backend decides which sessions may be ended. (pg_advisory_unlock_all() would
-- release only the caller's own locks.)
create or replace function fleet.force_unlock(p_lock text default 'maintenance')
returns table (pid integer, usename text, running interval, query text, is_ended boolean)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if p_lock is null or p_lock not in ('maintenance', 'reconcile', 'import') then
    raise exception using
      errcode = 'FL422',
      message = format('there is no lock %s', coalesce(p_lock, 'null')),
      hint = 'The locks are maintenance, reconcile and import: select * from fleet.force_unlock(''maintenance'');';
  end if;
  perform fleet.audit_unlock(p_lock);
  return query
    select a.pid, a.usename::text, date_trunc('second', now() - a.query_start), a.query,
      -- Waits for the end, so that the caller can start at once.
      pg_terminate_backend(a.pid, 5000)
    from fleet.lock_holders(p_lock) h
    join pg_stat_activity a on a.pid = h
    where h <> pg_backend_pid();
end
$$;

comment on function fleet.force_unlock(text) is
  'Ends the backend that holds the lock of a stuck maintenance, reconcile or import, and returns which it was. Its open '
  'transaction is rolled back, and the next run continues from there. Example: select * from '
  'fleet.force_unlock(''maintenance'');';
