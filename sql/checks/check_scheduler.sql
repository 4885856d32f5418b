create or replace function fleet.check_scheduler(p_now timestamptz default now())
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
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  c_restart constant text := format(e'# in a shell, as the user of Postgres\npg_ctl restart -m fast -D ''%s''', v_directory);
  v_has_cron boolean := exists (select from pg_extension where extname = 'pg_cron');
  -- A later one was written while the clock ran ahead.
  v_ticked timestamptz := (select max(j.started_at) from fleet.ticked_jobs j where j.started_at <= p_now);
  v_last_run timestamptz;
  v_names text;
  v_commands text;
  v_role text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'monitoring';
  status := 'ok'; detail := 'the store sees the activity of other roles'; remedy := null;
  if not pg_has_role('fleet_owner', 'pg_monitor', 'usage') or not pg_has_role('fleet_dba', 'pg_signal_backend', 'usage') then
    status := 'warn';
    detail := 'fleet_owner cannot see the activity of other roles, or fleet_dba cannot end it, so the checks of sessions and '
      'of the scheduler may be wrong';
    remedy := e'-- as superuser\ngrant pg_monitor to fleet_owner, fleet_dba;\ngrant pg_signal_backend to fleet_dba;';
  end if;
  return next;

  check_name := 'scheduler_roles';
  begin
    select string_agg(format('%s of %s', coalesce(j.jobname, 'job ' || j.jobid), j.username), ', '),
      string_agg(format('select cron.unschedule(%s);', j.jobid), e'\n')
    into v_names, v_commands
    from fleet_guard.lost_jobs() j;
  exception when undefined_function or insufficient_privilege then
    v_names := null;  -- set up before this function existed
  end;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(
    'pg_cron keeps restarting and runs no job, because the role of a job was dropped: ' || v_names, 'the role of every job exists'
  );
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'scheduler';
  status := 'ok'; detail := 'pg_cron runs'; remedy := null;
  if not v_has_cron and v_ticked is not null then
    detail := 'npm run tick runs the jobs';
    if p_now - greatest(v_ticked, fleet.postgres_started_at()) > interval '5 minutes' then
      status := 'fail'; detail := format('npm run tick last began a job %s ago', date_trunc('second', p_now - v_ticked));
      remedy := e'# in a shell, each minute\nDATABASE_URL=postgres://fleet_owner@… npm run tick';
    end if;
  elsif not v_has_cron and exists (
    select from fleet.events e
    where e.event = 'maintain.start' and e.at <= p_now
      and greatest(e.at, fleet.postgres_started_at()) >= p_now - interval '125 minutes'
  ) then
    detail := 'pg_cron is not in this database, but the hourly maintenance runs';
  elsif not v_has_cron then
    status := 'warn';
    detail := 'pg_cron is not in this database, no maintenance ran in the last two hours, and npm run tick was never run';
    remedy := format(
      e'-- as superuser, in database %s\n%s',
      coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'postgres, once pg_cron is there'),
      (select string_agg(j.statement, e'\n') from fleet.jobs_elsewhere() j)
    );
  elsif pg_is_in_recovery() then
    detail := 'this is a standby: the jobs run on the primary, and remedies must be run there too';
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs until Postgres is restarted'; remedy := c_restart;
  else
    execute 'select d.start_time from cron.job_run_details d where d.start_time is not null order by d.runid desc limit 1'
    into v_last_run;
    -- It remembers the minute of its last run, and waits for the next one.
    if v_last_run > clock_timestamp() + interval '1 minute' then
      status := 'fail';
      detail := format(
        'the clock of Postgres ran ahead and was set back: pg_cron runs no job before %s, unless Postgres is restarted',
        date_trunc('minute', v_last_run)
      );
      remedy := c_restart;
    end if;
  end if;
  return next;

  check_name := 'jobs';
  select string_agg(format('%s is %s%s', j.jobname, j.fault, ': ' || case j.fault when 'failed' then j.last_message end), ', '),
    string_agg(distinct
      case j.fault
        when 'missing' then 'select * from fleet.schedule_jobs();'
        when 'disabled' then format(
          'select cron.alter_job(jobid, active := true) from cron.job where jobname = %L and username = ''fleet_owner'';',
          j.jobname
        )
        else d.command || ';'
      end, e'\n'
    ),
    case
      when bool_or(j.fault = 'disabled') then e'-- as superuser\n'
      when bool_or(j.fault <> 'missing') then e'-- as fleet_owner; the next run clears this\n'
      else ''
    end
  into v_names, v_commands, v_role
  from (
    select h.*,
      case
        -- No job has ever run, although setup was long ago.
        when h.status = 'waiting' and bool_and(h.status = 'waiting') over ()
          and (select min(p.created_at) from fleet.hb_partitions p) < p_now - interval '3 hours' then 'late'
        else h.status
      end as fault
    from fleet.job_health h
    where v_has_cron or v_ticked is not null
  ) j
  join fleet.job_definitions() d using (jobname)
  where j.fault not in ('ok', 'waiting');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(
    v_names, case when v_has_cron or v_ticked is not null then 'all jobs run' else 'the history of the jobs is in the database of pg_cron' end
  );
  remedy := v_role || v_commands;
  return next;

  check_name := 'maintenance';
  select string_agg(format('%s %s: %s', e.event, e.partition_name, e.detail), '; '),
    case when bool_and(e.event = 'maintenance.premake') then 'call fleet.maintain();' else 'call fleet.nightly();' end
  into v_names, v_commands
  from (
    select distinct on (k.event, k.partition_name) k.*
    from fleet.events k
    where k.event like 'maintenance.%' and k.at > p_now - interval '25 hours'
    order by k.event, k.partition_name, k.event_id desc
  ) e
  where not e.is_ok;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'no step failed without succeeding later');
  remedy := case when v_names is not null then e'-- once the cause is fixed\n' || v_commands end;
  return next;

  check_name := 'nights';
  status := 'ok'; detail := 'fleet.nightly() began on schedule'; remedy := null;
  if fleet.is_night_missed(p_now) then
    status := 'warn'; detail := 'fleet.nightly() has not begun for 25 hours'; remedy := 'call fleet.nightly();';
  end if;
  return next;

  check_name := 'locks_of_maintenance';
  select string_agg(format('%s is held by backend %s for %s', w.name, a.pid, date_trunc('second', p_now - a.query_start)), ', '),
    string_agg(format('select * from fleet.force_unlock(%L);', w.name), e'\n')
  into v_names, v_commands
  from unnest(array['maintenance', 'reconcile']) as w (name)
  cross join fleet.lock_holders(w.name) h
  join pg_stat_activity a on a.pid = h
  where a.query_start < p_now - interval '2 hours';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'no lock is held for long');
  remedy := v_commands;
  return next;
end
$$;

comment on function fleet.check_scheduler(timestamptz) is
  'The part of fleet.check() about the scheduler: pg_cron or npm run tick, the jobs and roles, failed steps, missed nights and stuck locks.';
