-- Revokes rights that Postgres grants to everybody. Run at setup, after guard.sql, by the administrator. The functions belong to
-- the superuser that created the cluster. An administrator without its rights gets a warning about what remains possible.
set search_path = pg_catalog, pg_temp;

do $$
declare
  v_function regprocedure;
begin
  -- A database that was created before PostgreSQL 15 lets everybody create functions and tables in schema public.
  if to_regnamespace('public') is not null
    and pg_has_role(current_user, (select n.nspowner from pg_namespace n where n.nspname = 'public'), 'usage') then
    revoke create on schema public from public;
  end if;

  for v_function in
    select p.oid::regprocedure
    from pg_proc p
    where p.pronamespace = 'pg_catalog'::regnamespace
      and (
        -- Maintenance, pg_partman and the migrations use advisory locks. A role that may take advisory locks could keep these.
        p.proname ~ '^pg_(try_)?advisory_(xact_)?(lock|unlock)'
        -- A role without the right to write any table could still fill the disk with large objects.
        or p.proname in (
          'lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import', 'lo_open', 'lo_put', 'lo_truncate', 'lo_truncate64', 'lo_unlink',
          'lowrite'
        )
        -- Writes any amount into the WAL, even in a read-only transaction.
        or p.proname = 'pg_logical_emit_message'
      )
      -- Only what is still missing, because several databases may be set up at once, or one of them again.
      and (
        has_function_privilege('public', p.oid, 'execute')
        or (p.proname like 'pg%advisory%' and not has_function_privilege('fleet_owner', p.oid, 'execute'))
      )
    order by 1
  loop
    if not pg_has_role(current_user, (select p.proowner from pg_proc p where p.oid = v_function), 'usage') then
      raise warning using
        message = format(
          '%s does not own the functions of Postgres: every login can still take advisory locks and write large objects',
          current_user
        ),
        detail = 'A login that should only read can keep maintenance and migrations from running, and can fill the disk.',
        hint = 'As superuser: psql -f sql/setup/public.sql. Then grant the functions to any other application in this database '
          'that needs them.';
      exit;
    end if;
    execute format('revoke execute on function %s from public', v_function);
    if v_function::text like 'pg%advisory%' then
      execute format('grant execute on function %s to fleet_owner', v_function);
    end if;
  end loop;
end
$$;

-- Ends sessions that a time limit should have ended, because every role may disable its own statement_timeout.
create or replace function fleet_guard.end_overdue_readers(
  p_statement interval default '60 seconds',
  p_idle interval default '90 seconds',
  p_transaction interval default '5 minutes'
)
returns table (pid integer, usename text, reason text, is_ended boolean)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select o.pid, o.usename::text, o.reason, pg_terminate_backend(o.pid)
  from (
    select a.pid, a.usename,
      case
        when a.state = 'active' and a.query_start < clock_timestamp() - p_statement then
          format('its statement ran for %s s', extract(epoch from clock_timestamp() - a.query_start)::bigint)
        when a.state like 'idle in transaction%' and a.state_change < clock_timestamp() - p_idle then
          format('its transaction was idle for %s s', extract(epoch from clock_timestamp() - a.state_change)::bigint)
        when a.xact_start < clock_timestamp() - p_transaction then
          format('its transaction was open for %s s', extract(epoch from clock_timestamp() - a.xact_start)::bigint)
      end as reason
    from pg_stat_activity a
    join pg_roles r on r.oid = a.usesysid
    where a.backend_type = 'client backend' and a.datname = current_database() and not r.rolsuper
      -- Only readers: the work of the other roles may take longer.
      and (pg_has_role(r.oid, 'fleet_reader', 'member') or pg_has_role(r.oid, 'fleet_cohort_reader', 'member'))
      and not exists (
        select from pg_roles m
        where m.rolname in ('fleet_owner', 'fleet_server', 'fleet_archiver', 'fleet_dba', 'fleet_verifier', 'fleet_notifier')
          and pg_has_role(r.oid, m.oid, 'member')
      )
  ) o
  where o.reason is not null
$$;
comment on function fleet_guard.end_overdue_readers(interval, interval, interval) is
  'Ends the sessions of readers in this database whose statement, idle transaction or transaction is older than allowed, and '
  'returns them. Readers can disable their own timeouts, but not these limits. Called every minute by '
  'fleet.end_overdue_readers().';

revoke all on function fleet_guard.end_overdue_readers(interval, interval, interval) from public;
grant execute on function fleet_guard.end_overdue_readers(interval, interval, interval) to fleet_owner;
