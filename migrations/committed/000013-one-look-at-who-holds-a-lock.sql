--! Previous: sha1:b2dfcde5200ee6bc2fbde0e8e96bd6decb163efa
--! Hash: sha1:87b2353c917e34fb8287733d24583988f0bea8b0
--! Message: One look at who holds a lock

-- Enter migration here
--! Included functions/lock_holders.sql
create or replace function fleet.lock_holders(p_lock text) returns setof integer
language sql
volatile
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
  'The backend that holds the lock of maintenance or reconcile; none when nobody does. Example: select * from fleet.lock_holders(''maintenance'');';
--! EndIncluded functions/lock_holders.sql
--! Included functions/begin_run.sql
create or replace function fleet.begin_run(p_kind text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint := hashtextextended('fleet.maintenance', 0);
  v_run_id bigint;
  v_holder integer;
begin
  -- A lock of the session: it has to outlive the transactions of the run.
  if not pg_try_advisory_lock(v_key) then
    v_holder := (select h from fleet.lock_holders('maintenance') h);
    raise exception using
      errcode = 'FL003',
      message = format('maintenance is running already, in backend %s', v_holder),
      hint = 'Wait for it. If it is stuck: select * from fleet.force_unlock(''maintenance''); the next run goes on where it ended.';
  end if;
  v_run_id := nextval('fleet.run_id_seq');
  perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => session_user::text);
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text) is
  'Begins a run of maintenance: takes its lock, or says who has it, and numbers the run.';
--! EndIncluded functions/begin_run.sql
--! Included functions/force_unlock.sql
-- With the rights of the caller: whom one may end is what pg_signal_backend says. (pg_advisory_unlock_all() would free
-- only the caller's own locks.)
create or replace function fleet.force_unlock(p_lock text default 'maintenance')
returns table (pid integer, usename text, running interval, query text, is_ended boolean)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if p_lock is null or p_lock not in ('maintenance', 'reconcile') then
    raise exception using
      errcode = 'FL422',
      message = format('there is no lock %s', coalesce(p_lock, 'null')),
      hint = 'The locks are maintenance and reconcile: select * from fleet.force_unlock(''maintenance'');';
  end if;
  return query
    select a.pid, a.usename::text, date_trunc('second', now() - a.query_start), a.query,
      -- Waits, so that whoever asked can begin at once.
      pg_terminate_backend(a.pid, 5000)
    from fleet.lock_holders(p_lock) h
    join pg_stat_activity a on a.pid = h
    where h <> pg_backend_pid();
end
$$;

comment on function fleet.force_unlock(text) is
  'Ends the backend that holds the lock of a stuck maintenance or reconcile, and says who it was; what it had not committed is undone, the next run goes on from there. Example: select * from fleet.force_unlock(''maintenance'');';
--! EndIncluded functions/force_unlock.sql
--! Included functions/check_scheduler.sql
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
  v_names text;
  v_commands text;
  v_role text;
begin
  check_name := 'monitoring';
  status := 'ok'; detail := 'the activity of other roles is visible'; remedy := null;
  if not pg_has_role('fleet_owner', 'pg_monitor', 'usage') or not pg_has_role('fleet_dba', 'pg_signal_backend', 'usage') then
    status := 'warn';
    detail := 'fleet_owner may not see the activity of other roles, or fleet_dba not end it: what is said below of sessions and the scheduler may be wrong';
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
    v_names := null;  -- set up before there was such a function
  end;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('pg_cron ends and starts again all the time, and runs no job, while the role of one is gone: ' || v_names, 'every job''s role is there');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'scheduler';
  status := 'ok'; detail := 'pg_cron runs'; remedy := null;
  if not v_has_cron and exists (
    select from fleet.events e where e.event = 'maintain.start' and e.at between p_now - interval '125 minutes' and p_now
  ) then
    detail := 'pg_cron is not in this database; the hourly maintenance arrives all the same';
  elsif not v_has_cron then
    status := 'warn'; detail := 'pg_cron is not in this database, and no maintenance ran in the last two hours';
    remedy := format(e'-- as superuser, in database %s\n', coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'postgres, once pg_cron is there'))
      || (
        select string_agg(
          format(
            'select cron.schedule_in_database(%L, %L, %L, %L, ''fleet_owner'');', d.jobname, d.schedule, d.command, current_database()
          ), e'\n'
        )
        from fleet.job_definitions() d
      );
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs until Postgres is restarted'; remedy := c_restart;
  end if;
  return next;

  check_name := 'jobs';
  select string_agg(format('%s is %s%s', j.jobname, j.fault, ': ' || case j.fault when 'failed' then j.last_message end), ', '),
    string_agg(distinct
      case j.fault
        when 'missing' then 'select * from fleet.schedule_jobs();'
        when 'disabled' then format(
          'select cron.alter_job(jobid, active := true) from cron.job where jobname = %L and username = ''fleet_owner'';', j.jobname
        )
        else d.command || ';'
      end, e'\n'
    ),
    case
      when bool_or(j.fault = 'disabled') then e'-- as superuser\n'
      when bool_or(j.fault <> 'missing') then e'-- as fleet_owner; pg_cron''s next run of it clears this\n'
      else ''
    end
  into v_names, v_commands, v_role
  from (
    select h.*,
      case
        -- None has ever run, long after setup.
        when h.status = 'waiting' and bool_and(h.status = 'waiting') over ()
          and (select min(p.created_at) from fleet.hb_partitions p) < p_now - interval '3 hours' then 'late'
        else h.status
      end as fault
    from fleet.job_health h
    where v_has_cron
  ) j
  join fleet.job_definitions() d using (jobname)
  where j.fault not in ('ok', 'waiting');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, case when v_has_cron then 'all jobs run' else 'their history is in the database of pg_cron' end);
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
  detail := coalesce(v_names, 'no step failed without a later success');
  remedy := case when v_names is not null then e'-- once its cause is mended\n' || v_commands end;
  return next;

  check_name := 'nights';
  status := 'ok'; detail := 'the last night''s work was begun'; remedy := null;
  if fleet.is_night_missed(p_now) then
    status := 'warn'; detail := 'fleet.nightly() was not begun for 25 hours'; remedy := 'call fleet.nightly();';
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
  detail := coalesce(v_names, 'none is held for long');
  remedy := v_commands;
  return next;
end
$$;

comment on function fleet.check_scheduler(timestamptz) is
  'What fleet.check() says of the scheduler: pg_cron, its jobs and roles, failed steps, missed nights and stuck locks.';
--! EndIncluded functions/check_scheduler.sql
--! Included functions/schedule_jobs.sql
create or replace function fleet.schedule_jobs()
returns table (jobname text, schedule text, command text, is_scheduled boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_job record;
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    for v_job in select * from fleet.job_definitions() loop
      raise notice using
        message = format('not scheduled, pg_cron is not in this database: %s', v_job.jobname),
        hint = format(
          'In the database that cron.database_name names (%s): select cron.schedule_in_database(%L, %L, %L, %L, %L);',
          -- Not current_setting(): that is an error for whom it is hidden from.
          coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'not known here'),
          v_job.jobname, v_job.schedule, v_job.command, current_database(), 'fleet_owner'
        );
    end loop;
    return query select d.jobname, d.schedule, d.command, false from fleet.job_definitions() d;
    return;
  end if;

  -- By name, so that a second call changes nothing; jobs of ours that are no longer defined go.
  execute $jobs$
    select cron.unschedule(j.jobid)
    from cron.job j
    where j.jobname like 'fleet-%' and j.username = current_user
      and not exists (select from fleet.job_definitions() d where d.jobname = j.jobname)
  $jobs$;
  for v_job in select * from fleet.job_definitions() loop
    execute 'select cron.schedule($1, $2, $3)' using v_job.jobname, v_job.schedule, v_job.command;
  end loop;
  return query select d.jobname, d.schedule, d.command, true from fleet.job_definitions() d;
end
$$;

comment on function fleet.schedule_jobs() is
  'Gives pg_cron the jobs of fleet.job_definitions(), as their owner; may be called again. Where pg_cron lives in another database it says what to run there. Example: select * from fleet.schedule_jobs();';
--! EndIncluded functions/schedule_jobs.sql
--! Included grants.sql
-- Who may do what. Everything is revoked first, so that this file is the whole truth.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba;
grant usage on schema fleet_detached to fleet_reader, fleet_dba;
-- CREATE is what owning a table there takes.
grant usage, create on schema fleet_detached to fleet_archiver;

-- Heartbeats are never changed, not even by the owner: rows leave with their partition, once it is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.token_changes(xid8),
  fleet.recent_tokens(integer),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.metric_values()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer),
  fleet.list_devices_legacy(text, interval, bigint, integer),
  fleet.marks_hold(interval)  -- what the view devices_offline calls
to fleet_server, fleet_reader, fleet_dba;

grant execute on function
  fleet.create_device(text, text),
  fleet.enroll_device(text, text),
  fleet.revoke_device(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(timestamptz),
  -- What the procedures call with the rights of who calls them.
  fleet.begin_run(text),
  fleet.end_run(bigint, text, integer),
  fleet.do_step(text, text, timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.record_event(text, text, bigint, bigint, text, boolean, bigint),
  fleet.count_up(text, numeric),
  fleet.elapsed_ms(timestamptz),
  fleet.is_night_missed(timestamptz)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.maintain(bigint, timestamptz),
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_step(bigint, text, text, timestamptz, integer)
to fleet_server, fleet_dba;

grant execute on function
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
  fleet.lock_holders(text),  -- what force_unlock() calls
  fleet.set_cohort_interval(text, interval),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.schedule_jobs(),
  fleet.check_partitions(timestamptz),
  fleet.check_ingest(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_sessions(timestamptz),
  fleet.check_storage(timestamptz),
  fleet.check_settings(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values()
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.wake_archiver(text),
  fleet.content_checksum(regclass),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz),
  fleet.record_upload(text, text, text, text, bigint),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.release_restore(text, text),
  fleet.fail_restore(text, text, text),
  fleet.adopt_archive(text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint)
to fleet_archiver;

grant select on
  fleet.device_status, fleet.device_status_legacy, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.job_health
to fleet_reader, fleet_dba;
-- What the view job_health calls.
grant execute on function fleet.job_history() to fleet_reader, fleet_dba;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_requests, fleet.restore_items to fleet_archiver, fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql
