-- fleet.force_unlock() runs with the rights of its caller and may not write to fleet.audit_log itself.
create or replace function fleet.audit_unlock(p_lock text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select fleet.audit(
    'lock.forced', 'lock:' || p_lock, jsonb_build_object('pid', a.pid, 'login', a.usename, 'since', a.query_start)
  )
  from fleet.lock_holders(p_lock) h
  join pg_stat_activity a on a.pid = h
  where h <> pg_backend_pid();
$$;

comment on function fleet.audit_unlock(text) is
  'Records in fleet.audit_log that the backends that hold a lock are going to be ended. Called by fleet.force_unlock().';
