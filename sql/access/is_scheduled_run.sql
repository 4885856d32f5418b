create or replace function fleet.is_scheduled_run() returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select a.how = 'job' and pg_has_role(session_user, 'fleet_owner', 'member')
  from fleet.current_actor() a;
$$;

comment on function fleet.is_scheduled_run() is
  'Whether pg_cron runs a job of the store now. What these do every hour is in fleet.events, and not in fleet.audit_log.';
