create or replace function fleet.take_import_lock() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_holder integer := (select h from fleet.lock_holders('import') h limit 1);
begin
  -- A lock of the session: it has to outlive the transactions of the run. A run of this session that was cancelled may have left it.
  if v_holder is distinct from pg_backend_pid() and not pg_try_advisory_lock(hashtextextended('fleet.import', 0)) then
    raise exception using
      errcode = 'FL003',
      message = format('a table is being adopted already, in backend %s', coalesce(v_holder, (select h from fleet.lock_holders('import') h limit 1))),
      hint = 'See select * from fleet.import_progress. If it is stuck: select * from fleet.force_unlock(''import''); the next run goes on where it ended.';
  end if;
end
$$;

comment on function fleet.take_import_lock() is 'Takes the lock of imports for this session, or says who has it.';
