--! Previous: sha1:dedf4fbd7f4862fb7b40c7725db7fbb3abd16b45
--! Hash: sha1:0dc430c5552032ee240e1d5452940c33cab237aa
--! Message: jobs of a store whose pg_cron is elsewhere

-- Where pg_cron lives in another database: jobs named after theirs, which no other store overwrites or takes away.
--! Included functions/jobs_elsewhere.sql
create or replace function fleet.jobs_elsewhere()
returns table (jobname text, statement text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Named after this database too: by name and role pg_cron tells jobs apart, and other stores of the cluster have the same of both.
  select d.jobname, case d.jobname
    -- Its history is where it is.
    when 'fleet-prune-cron-history' then format(
      'select cron.schedule(%L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      format('%swhere database = %L and (%s)', split_part(d.command, 'where', 1), current_database(), trim(split_part(d.command, 'where', 2)))
    )
    else format(
      'select cron.schedule_in_database(%L, %L, %L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      -- Nobody there names the partitions anew each night: they are left to autovacuum.
      case d.jobname when 'fleet-vacuum' then 'vacuum (analyze) fleet.device_last_status' else d.command end,
      current_database(), 'fleet_owner'
    )
  end
  from fleet.job_definitions() d
  where d.jobname <> 'fleet-freeze';
$$;

comment on function fleet.jobs_elsewhere() is
  'Where pg_cron lives in another database: the statement that schedules each job there, for a superuser.';
--! EndIncluded functions/jobs_elsewhere.sql
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
    for v_job in select * from fleet.jobs_elsewhere() loop
      raise notice using
        message = format('not scheduled, pg_cron is not in this database: %s', v_job.jobname),
        hint = format(
          'As superuser, in the database that cron.database_name names (%s): %s',
          -- Not current_setting(): that is an error for whom it is hidden from.
          coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'not known here'), v_job.statement
        );
    end loop;
    return query select d.jobname, d.schedule, d.command, false from fleet.job_definitions() d;
    return;
  end if;

  -- By name, so that a second call changes nothing; jobs of ours that are no longer defined go.
  execute $jobs$
    select cron.unschedule(j.jobid)
    from cron.job j
    where j.jobname like 'fleet-%' and j.username = current_user and j.database = current_database()
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
      || (select string_agg(j.statement, e'\n') from fleet.jobs_elsewhere() j);
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
  fleet.record_slo(text, json),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer),
  fleet.list_devices_legacy(text, interval, bigint, integer),
  fleet.marks_hold(interval),  -- what the view devices_offline calls
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.silence_at(timestamptz),  -- what the view fleet_silence calls
  fleet.job_history()  -- what the view job_health calls
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
  fleet.do_step(text, text, timestamptz, date),
  fleet.retention_plan(interval, timestamptz),
  fleet.rollup_plan(timestamptz),
  fleet.record_event(text, text, bigint, bigint, text, boolean, bigint),
  fleet.count_up(text, numeric),
  fleet.elapsed_ms(timestamptz),
  fleet.is_night_missed(timestamptz)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.maintain(bigint, timestamptz),
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_step(bigint, text, text, timestamptz, integer, date)
to fleet_server, fleet_dba;

grant execute on function
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
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
  fleet.roll_up(date, timestamptz, boolean),
  fleet.availability_of_day(date, timestamptz, bigint[]),
  fleet.schedule_jobs(),
  fleet.renew_token(bigint),
  fleet.adoption_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_adoption(regclass),
  fleet.forget_adoption(text),
  fleet.refused_rows(regclass, integer),
  -- What the procedures of adoptions call with the rights of who calls them.
  fleet.begin_adoption(regclass, jsonb, text, timestamptz, boolean),
  fleet.begin_verification(regclass),
  fleet.begin_abandoning(regclass),
  fleet.adoption_step(text, integer),
  fleet.end_adoption(text, text),
  fleet.check_partitions(timestamptz),
  fleet.check_ingest(timestamptz),
  fleet.check_silence(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_sessions(timestamptz),
  fleet.check_storage(timestamptz),
  fleet.check_adoption(timestamptz),
  fleet.check_settings(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_dba;

grant execute on procedure
  fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_adoption(regclass, text),
  fleet.abandon_adoption(regclass, text),
  fleet.run_adoption(text, integer, interval, text)
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.wake_archiver(text),
  fleet.content_checksum(regclass),
  fleet.checksum_expression(regclass),
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
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.storage_history, fleet.job_health,
  fleet.fleet_silence, fleet.fleet_trend, fleet.missed_beats, fleet.silence_samples, fleet.adoption_progress, fleet.device_availability, fleet.slo
to fleet_reader, fleet_dba;
grant execute on function fleet.device_availability(date, date, bigint, timestamptz) to fleet_reader, fleet_dba;
-- For the ops page.
grant select on
  fleet.partition_health, fleet.archives, fleet.job_health, fleet.fleet_silence, fleet.fleet_trend, fleet.slo
to fleet_server;
-- What the view adoption_progress calls.
grant execute on function fleet.lock_holders(text) to fleet_reader, fleet_dba;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_requests, fleet.restore_items to fleet_archiver, fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on
  fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual,
  fleet.device_availability_daily, fleet.rolled_up_days, fleet.late_arrivals, fleet.storage_daily
to fleet_dba;
grant select on fleet.adoptions, fleet.adoption_days, fleet.adoption_refusals to fleet_dba;
grant select, insert, update, delete on fleet.adoption_devices to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep, rollups_keep, silence_window, silence_share, silence_ratio,
  silence_min_devices, ingest_gap
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql
