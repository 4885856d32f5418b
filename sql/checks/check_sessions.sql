create or replace function fleet.check_sessions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_restart text := format(
    'pg_ctl restart -m fast -D ''%s''',
    coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA')
  );
  v_faults text[];
  v_fault text;
  v_names text;
  v_commands text;
  v_max bigint := current_setting('max_connections')::bigint;
  v_used bigint;
  v_workers bigint;
  v_wanted bigint;
begin
  perform fleet.not_in_future(p_now);
  -- Sessions that block others, run for long or idle in a transaction are found and ended in the same way.
  foreach v_fault in array array['blocking', 'long_transactions', 'idle_in_transaction'] loop
    check_name := v_fault;
    select
      string_agg(
        format('backend %s (%s, %s) for %s: %s', a.pid, a.usename, a.state, a.age, left(a.query, 60)), '; ' order by a.pid
      ),
      case when bool_or(a.is_super) then e'-- as superuser\n' else '' end
      || string_agg(format('select pg_terminate_backend(%s);', a.pid), e'\n' order by a.pid)
    into v_names, v_commands
    from (
      select s.pid, s.usename, coalesce(s.state, s.backend_type) as state, s.query,
        date_trunc('second', greatest(p_now - coalesce(s.xact_start, s.query_start), '0')) as age,
        (select r.rolsuper from pg_roles r where r.oid = s.usesysid) as is_super
      from pg_stat_activity s
      where s.pid <> pg_backend_pid()
        and s.backend_type not in ('autovacuum worker', 'walsender')
        and case v_fault
          when 'long_transactions' then
            s.xact_start < p_now - interval '1 hour' and s.state is distinct from 'idle in transaction'
          when 'idle_in_transaction' then s.state like 'idle in transaction%' and s.state_change < p_now - interval '10 minutes'
          else s.pid in (
              select b.pid
              from pg_locks w
              cross join unnest(pg_blocking_pids(w.pid)) as b (pid)
              where not w.granted and w.waitstart < p_now - interval '3 seconds'
            )
            -- Only the first of a queue, because the others continue when it ends.
            and cardinality(pg_blocking_pids(s.pid)) = 0
        end
    ) a;
    status := case when v_names is null then 'ok' else 'warn' end;
    detail := coalesce(v_names, 'none');
    remedy := v_commands;
    return next;
  end loop;

  check_name := 'prepared_transactions';
  select string_agg(format('%s of %s in %s since %s', x.gid, x.owner, x.database, date_trunc('second', x.prepared)), ', '),
    e'-- as superuser' || string_agg(
      case x.database when current_database() then '' else format(e'\n-- in database %s:', x.database) end
      || format(e'\nrollback prepared %L;', x.gid), '' order by x.database <> current_database(), x.database, x.prepared
    )
  into v_names, v_commands
  from pg_prepared_xacts x
  where x.prepared < p_now - interval '10 minutes'
    -- Those of Citus are decided by the node that began them: fleet.check_nodes().
    and not (x.gid like 'citus\_%' and fleet.is_distributed());
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('still open, with its locks: ' || v_names, 'none is open for long');
  remedy := v_commands;
  return next;

  check_name := 'replication_slots';
  select string_agg(format('%s keeps %s of WAL%s', r.slot_name, pg_size_pretty(r.kept), ' and dead rows since ' || r.xmin), ', '),
    e'-- as superuser; the replica must then be rebuilt\n'
    || string_agg(format('select pg_drop_replication_slot(%L);', r.slot_name), e'\n'),
    array_agg(case when r.kept > 4::bigint << 30 then 'fail' else 'warn' end)
  into v_names, v_commands, v_faults
  from (
    select s.slot_name, coalesce(age(s.xmin), age(s.catalog_xmin))::text || ' transactions ago' as xmin,
      pg_wal_lsn_diff(
        case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, s.restart_lsn
      ) as kept
    from pg_replication_slots s
    where not s.active
  ) r
  where r.kept > 256 << 20;
  status := case when v_names is null then 'ok' when 'fail' = any (v_faults) then 'fail' else 'warn' end;
  detail := coalesce('no replica reads ' || v_names, 'no unused slot keeps WAL');
  remedy := v_commands;
  return next;

  check_name := 'connections';
  select count(*) filter (where s.backend_type = 'client backend'), count(*) filter (where s.application_name = 'nexmdm report')
  into v_used, v_workers
  from pg_stat_activity s;
  -- Each worker has a pool (10 connections, unless POOL_MAX is set) and up to 3 more. The rest is for the archiver and people.
  v_wanted := greatest(v_workers * (10 + 3) + 50, ceil(v_used * 1.3));
  status := case when v_used >= 0.95 * v_max then 'fail' when v_used >= 0.8 * v_max or v_wanted > v_max then 'warn' else 'ok' end;
  detail := format('%s of %s connections are in use; %s server workers may need %s', v_used, v_max, v_workers, v_wanted);
  remedy := null;
  if status <> 'ok' and exists (select from pg_settings s where s.name = 'max_connections' and s.pending_restart) then
    detail := detail || '; a new limit is set and takes effect when Postgres is restarted';
    remedy := e'# in a shell, as the user of Postgres\n' || v_restart;
  elsif status <> 'ok' then
    remedy := format(
      e'-- as superuser; then restart Postgres: %s\nalter system set max_connections = %s;\nselect pg_reload_conf();',
      v_restart, greatest(v_wanted, v_max) + 50
    );
  end if;
  return next;
end
$$;

comment on function fleet.check_sessions(timestamptz) is
  'The part of fleet.check() about sessions: those that block others, long and prepared transactions, replication slots, '
  'connections.';
