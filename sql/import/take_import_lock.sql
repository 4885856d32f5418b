create or replace function fleet.take_import_lock() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_holder integer := (select h from fleet.lock_holders('import') h limit 1);
begin
  -- A session lock, because it has to outlive the run's transactions. A cancelled run of this session may have left it behind.
  if v_holder is distinct from pg_backend_pid() and not pg_try_advisory_lock(hashtextextended('fleet.import', 0)) then
    raise exception using
      errcode = 'FL003',
      message = format(
        'a table is already being imported, in backend %s',
        coalesce(v_holder, (select h from fleet.lock_holders('import') h limit 1))
      ),
      hint = 'See select * from fleet.import_progress. If it is stuck: select * from fleet.force_unlock(''import''); '
        'the next run continues where it stopped.';
  end if;
end
$$;

comment on function fleet.take_import_lock() is
  'Takes the lock of imports for this session, or raises an error that names the backend that holds it.';
