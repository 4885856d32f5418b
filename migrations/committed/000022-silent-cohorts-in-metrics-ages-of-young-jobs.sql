--! Previous: sha1:aa0c381c67154e80d4986530aa7d88430022d31e
--! Hash: sha1:9fe3d751b1c080d574738fe92ae05454d1cbf22e
--! Message: silent cohorts in metrics, ages of young jobs

--! Included functions/silence_metrics.sql
create or replace function fleet.silence_metrics()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select v.metric, jsonb_build_object('cohort', s.cohort), v.value
  from fleet.fleet_silence s
  cross join lateral (
    values
      ('cohort_devices', s.devices::double precision),
      ('cohort_active_devices', s.active),
      ('cohort_gone_quiet_devices', s.gone_quiet),
      ('cohort_gone_quiet_ratio', s.share),
      ('cohort_usual_quiet_ratio', s.usual_share),
      ('cohort_silence_alarm', s.is_alarming::integer),
      ('cohort_silence_muted', s.is_muted::integer)
  ) as v (metric, value)
  where v.value is not null;
$$;

comment on function fleet.silence_metrics() is
  'fleet.fleet_silence for /metrics. Apart from fleet.metric_values() since it looks at each device; a server asks for it once a minute.';
--! EndIncluded functions/silence_metrics.sql
--! Included functions/metric_definitions.sql
create or replace function fleet.metric_definitions()
returns table (metric text, type text, unit text, help text)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    ('partitions_created_total', 'counter', 'partitions', 'Partitions of heartbeats that were made'),
    ('partition_create_failures_total', 'counter', 'runs', 'Runs of maintenance that could not make partitions ahead'),
    ('partitions_archived_total', 'counter', 'partitions', 'Partitions whose archive was read back and proven'),
    ('hb_partition_archived_total', 'counter', 'partitions', 'The same as partitions_archived_total'),
    ('hb_partition_dropped_total', 'counter', 'partitions', 'Partitions dropped after their archive was proven'),
    ('archive_failures_total', 'counter', 'tries', 'Tries to archive a partition that failed'),
    ('archive_bytes_pushed_total', 'counter', 'bytes', 'Size of the Parquet files that were written to the archive'),
    ('reconciliation_rows_updated_total', 'counter', 'devices', 'Devices whose last status was behind their heartbeats and was healed'),
    ('partition_premake_runway_days', 'gauge', 'days', 'Time for which partitions are made ahead'),
    ('retention_lag_days', 'gauge', 'days', 'How long the oldest partition has been past its retention and is still online; days that are held do not count'),
    ('archive_backlog_partitions', 'gauge', 'partitions', 'Partitions that are retired and not yet archived'),
    ('archiver_heartbeat_age_seconds', 'gauge', 'seconds', 'Time since an archiver was last heard of'),
    ('scheduler_last_run_age_seconds', 'gauge', 'seconds', 'Time since the job last began; of maintain, nightly and reconcile since setup while they never have'),
    ('partitions', 'gauge', 'partitions', 'Partitions by state'),
    ('partition_rows', 'gauge', 'heartbeats', 'Heartbeats by state of their partition, as counted in the night'),
    ('partition_bytes', 'gauge', 'bytes', 'Size on disk by state of the partition, as measured in the night'),
    ('archive_bytes', 'gauge', 'bytes', 'Size of the proven archives'),
    ('cohort_devices', 'gauge', 'devices', 'Devices on the roster; cohort (all) is the whole fleet'),
    ('cohort_active_devices', 'gauge', 'devices', 'Devices that were heard of lately, as fleet.fleet_silence counts them'),
    ('cohort_gone_quiet_devices', 'gauge', 'devices', 'Those of them that have gone quiet'),
    ('cohort_gone_quiet_ratio', 'gauge', 'ratio', 'Their share'),
    ('cohort_usual_quiet_ratio', 'gauge', 'ratio', 'The share that is usual at this time of day'),
    ('cohort_silence_alarm', 'gauge', 'flag', '1 while many more have gone quiet than usual, else 0'),
    ('cohort_silence_muted', 'gauge', 'flag', '1 while that cannot be judged, else 0'),
    ('slo_good', 'gauge', 'tries', 'What succeeded in the period of the error budget'),
    ('slo_bad', 'gauge', 'tries', 'What failed in the period of the error budget'),
    ('slo_target_ratio', 'gauge', 'ratio', 'Share that may fail'),
    ('slo_error_ratio', 'gauge', 'ratio', 'Share that failed in the period of the error budget'),
    ('slo_budget_left_ratio', 'gauge', 'ratio', 'What is left of the error budget: 1 all, 0 nothing, below 0 overspent'),
    ('postgres_connections', 'gauge', 'connections', 'Connections to Postgres by what they do'),
    ('postgres_connections_max', 'gauge', 'connections', 'Connections that Postgres takes of others than superusers'),
    ('postgres_transactions_total', 'counter', 'transactions', 'Transactions in this database since its statistics were reset'),
    ('postgres_blocks_total', 'counter', 'blocks', 'Blocks of this database that were found in shared buffers, or read from the operating system'),
    ('postgres_longest_transaction_seconds', 'gauge', 'seconds', 'Age of the oldest transaction of a client in this database'),
    ('postgres_dead_rows', 'gauge', 'rows', 'Dead rows that autovacuum has not removed yet'),
    ('postgres_replica_bytes_behind', 'gauge', 'bytes', 'WAL that a replica has not replayed yet');
$$;

comment on function fleet.metric_definitions() is
  'What each metric of fleet.metric_values() and fleet.silence_metrics() is: its type for Prometheus, its unit and a sentence. Example: select * from fleet.metric_definitions();';
--! EndIncluded functions/metric_definitions.sql
--! Included functions/scheduler_ages.sql
-- Not by fleet.job_history(), which reads the whole history for the last success of each job: too much for a scrape.
create or replace function fleet.scheduler_ages()
returns table (jobname text, age interval)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_setup timestamptz := (select min(p.created_at) from fleet.hb_partitions p);
  v_known text[] := array[]::text[];
begin
  if exists (select from pg_extension where extname = 'pg_cron') then
    for jobname, age in execute $jobs$
      select j.jobname, now() - d.start_time
      from cron.job j
      cross join lateral (select h.start_time from cron.job_run_details h where h.jobid = j.jobid order by h.runid desc limit 1) d
      where j.jobname like 'fleet-%' and j.username = current_user and d.start_time is not null
    $jobs$ loop
      v_known := v_known || jobname;
      return next;
    end loop;
  end if;
  -- Where pg_cron works in another database, lost a job or its history: by what the jobs leave here. These have been there from
  -- the beginning, so that one that never ran is as old as the store.
  return query
    select w.jobname, now() - coalesce((select max(e.at) from fleet.events e where e.event = w.event), v_setup)
    from (
      values
        ('fleet-maintain', 'maintain.start'), ('fleet-nightly', 'nightly.start'), ('fleet-reconcile', 'reconciliation.completed')
    ) as w (jobname, event)
    where w.jobname <> all (v_known);
end
$$;

comment on function fleet.scheduler_ages() is
  'How long ago each job of the store began; maintain, nightly and reconcile since setup while they never have. For /metrics.';
--! EndIncluded functions/scheduler_ages.sql
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
