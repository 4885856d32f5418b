--! Previous: sha1:a9fe27c7f3d6dc19659313e123871f076f32ac0b
--! Hash: sha1:c342bba79b6d0a57a7590f2a136743f9f7628f1e
--! Message: error budgets, metrics with help and units

create table fleet.slo_counts (
  slo text not null,
  minute timestamptz not null,
  server text not null,
  good bigint not null,
  bad bigint not null,
  constraint slo_counts_pkey primary key (slo, minute, server)
);
comment on table fleet.slo_counts is 'What each process of a server counted for the error budgets, by minute; kept for a week. Read it through fleet.slo.';
comment on column fleet.slo_counts.slo is 'Name of the error budget, as in fleet.slo.';
comment on column fleet.slo_counts.minute is 'Begin of the minute, by the clock of the server.';
comment on column fleet.slo_counts.server is 'Which process counted; each has a name of its own.';
comment on column fleet.slo_counts.good is 'What succeeded in that minute.';
comment on column fleet.slo_counts.bad is 'What failed in that minute.';

--! Included functions/record_slo.sql
create or replace function fleet.record_slo(p_server text, p_counts json) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.slo_counts as c (slo, minute, server, good, bad)
  select r.slo, r.minute, p_server, r.good, r.bad
  from json_to_recordset(p_counts) as r (slo text, minute timestamptz, good bigint, bad bigint)
  order by r.slo, r.minute
  -- Totals of the minute so far: whoever is not sure that they arrived sends them again.
  on conflict on constraint slo_counts_pkey do update
    set good = greatest(c.good, excluded.good),
      bad = greatest(c.bad, excluded.bad);
$$;

comment on function fleet.record_slo(text, json) is
  'A process of a server tells what it counted for the error budgets: the totals of its minutes, every 10 seconds. Again is no error. Example: select fleet.record_slo(''a'', ''[{"slo":"heartbeat_writes","minute":"2026-11-21T08:00Z","good":1000,"bad":2}]'');';
--! EndIncluded functions/record_slo.sql
--! Included views/slo.sql
-- The targets are also in docker/prometheus/rules/: an alert must not need the database that failed.
create or replace view fleet.slo as
select o.slo, o.target, o.period, c.good, c.bad,
  round(b.ratio, 6) as ratio,
  round(1 - coalesce(b.ratio, 0) / o.target, 4) as budget_left,
  case
    when c.good + c.bad = 0 then 'idle'
    when b.ratio >= o.target then 'fail'
    when b.ratio >= o.target / 2 then 'warn'
    else 'ok'
  end as status
from (
  values
    ('heartbeat_writes', 0.005, interval '1 hour'),
    ('dispatch_log', 0.002, interval '1 hour')
) as o (slo, target, period)
cross join lateral (
  select coalesce(sum(k.good), 0)::bigint as good, coalesce(sum(k.bad), 0)::bigint as bad
  from fleet.slo_counts k
  where k.slo = o.slo and k.minute > now() - o.period and k.minute <= now()
) c
cross join lateral (select c.bad::numeric / nullif(c.good + c.bad, 0) as ratio) b;

comment on view fleet.slo is
  'The error budgets: of what the servers tried in the last period, how much failed (ratio), and how much of what target allows is left (budget_left: 1 all, 0 nothing, below 0 overspent). status: ok, warn (half is spent), fail (all is spent) or idle (nothing was tried). Up to 10 seconds behind. Example: select * from fleet.slo where status in (''warn'', ''fail'');';
--! EndIncluded views/slo.sql
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
    ('scheduler_last_run_age_seconds', 'gauge', 'seconds', 'Time since the job last began; since setup while it never has'),
    ('partitions', 'gauge', 'partitions', 'Partitions by state'),
    ('partition_rows', 'gauge', 'heartbeats', 'Heartbeats by state of their partition, as counted in the night'),
    ('partition_bytes', 'gauge', 'bytes', 'Size on disk by state of the partition, as measured in the night'),
    ('archive_bytes', 'gauge', 'bytes', 'Size of the proven archives'),
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
  'What each metric of fleet.metric_values() is: its type for Prometheus, its unit and a sentence. Example: select * from fleet.metric_definitions();';
--! EndIncluded functions/metric_definitions.sql
--! Included functions/postgres_metrics.sql
create or replace function fleet.postgres_metrics()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Of all databases: they share the limit. Without pg_monitor the state of other roles is not seen.
  select 'postgres_connections', jsonb_build_object('state', coalesce(a.state, 'unknown')), count(*)::double precision
  from pg_stat_activity a
  where a.backend_type = 'client backend'
  group by a.state
  union all
  select 'postgres_connections_max', '{}',
    current_setting('max_connections')::double precision - current_setting('superuser_reserved_connections')::double precision
  union all
  select 'postgres_longest_transaction_seconds', '{}',
    greatest(0, coalesce(max(extract(epoch from clock_timestamp() - a.xact_start)), 0))::double precision
  from pg_stat_activity a
  where a.datname = current_database() and a.backend_type = 'client backend' and a.pid <> pg_backend_pid()
  union all
  select v.metric, v.labels, v.value::double precision
  from pg_stat_database d
  cross join lateral (
    values
      ('postgres_transactions_total', '{"outcome":"committed"}'::jsonb, d.xact_commit),
      ('postgres_transactions_total', '{"outcome":"rolled_back"}', d.xact_rollback),
      ('postgres_blocks_total', '{"found":"in_buffers"}', d.blks_hit),
      ('postgres_blocks_total', '{"found":"outside"}', d.blks_read)
  ) as v (metric, labels, value)
  where d.datname = current_database()
  union all
  select 'postgres_dead_rows', '{"table":"device_last_status"}',
    pg_stat_get_dead_tuples('fleet.device_last_status'::regclass)::double precision
  union all
  select 'postgres_replica_bytes_behind', jsonb_build_object('replica', r.application_name, 'address', host(r.client_addr)),
    max(pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn))::double precision
  from pg_stat_replication r
  where not pg_is_in_recovery() and r.replay_lsn is not null
  group by r.application_name, r.client_addr;
$$;

comment on function fleet.postgres_metrics() is 'The part of fleet.metric_values() that Postgres itself tells.';
--! EndIncluded functions/postgres_metrics.sql
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
      select j.jobname,
        now() - coalesce((select d.start_time from cron.job_run_details d where d.jobid = j.jobid order by d.runid desc limit 1), $1)
      from cron.job j
      where j.jobname like 'fleet-%' and j.username = current_user
    $jobs$ using v_setup loop
      v_known := v_known || jobname;
      return next;
    end loop;
  end if;
  -- Where pg_cron works in another database, or lost a job: by what the jobs leave here.
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
  'How long ago each job of the store began; since setup while it never has. For /metrics.';
--! EndIncluded functions/scheduler_ages.sql
--! Included functions/metric_values.sql
create or replace function fleet.metric_values()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.counter, '{}'::jsonb, c.total::double precision
  from fleet.counters c
  union all
  select 'partition_premake_runway_days', '{}',
    greatest(0, extract(epoch from coalesce(max(p.range_end), now()) - now()) / 86400)::double precision
  from fleet.hb_partitions p
  where exists (select from pg_inherits i where i.inhrelid = p.relid and i.inhparent = 'fleet.device_heartbeats'::regclass)
  union all
  select 'retention_lag_days', '{}',
    greatest(0, coalesce(max(extract(epoch from now() - s.retention - p.range_end)), 0) / 86400)::double precision
  from fleet.settings s
  left join fleet.hb_partitions p on p.state = 'active' and p.held_reason is null
    and p.range_end <= coalesce((select min(h.since) from fleet.adoption_holds() h), 'infinity')
  union all
  select 'archive_backlog_partitions', '{}', count(*)::double precision
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving', 'archive_failed')
  union all
  select 'archiver_heartbeat_age_seconds', '{}', extract(epoch from now() - max(a.last_seen_at))::double precision
  from fleet.archivers a
  having count(*) > 0
  union all
  select 'scheduler_last_run_age_seconds', jsonb_build_object('job', g.jobname), greatest(0, extract(epoch from g.age))::double precision
  from fleet.scheduler_ages() g
  union all
  select v.metric, jsonb_build_object('state', s.state), v.value
  from (
    select p.state, count(*)::double precision as partitions,
      coalesce(sum(p.row_count), 0)::double precision as rows,
      coalesce(sum(p.bytes_size) filter (where p.relid is not null), 0)::double precision as bytes
    from fleet.hb_partitions p
    group by p.state
  ) s
  cross join lateral (
    values ('partitions', s.partitions), ('partition_rows', s.rows), ('partition_bytes', s.bytes)
  ) as v (metric, value)
  union all
  select 'archive_bytes', '{}', coalesce(sum(p.archive_bytes), 0)::double precision
  from fleet.hb_partitions p
  where p.proven_at is not null
  union all
  select v.metric, jsonb_build_object('slo', s.slo), v.value::double precision
  from fleet.slo s
  cross join lateral (
    values
      ('slo_good', s.good::numeric), ('slo_bad', s.bad::numeric), ('slo_target_ratio', s.target),
      ('slo_error_ratio', s.ratio), ('slo_budget_left_ratio', s.budget_left)
  ) as v (metric, value)
  where v.value is not null
  union all
  select m.metric, m.labels, m.value
  from fleet.postgres_metrics() m;
$$;

comment on function fleet.metric_values() is
  'The metrics that live in the database, for /metrics: totals, ages and error budgets. One row a metric and label set; fleet.metric_definitions() says what each is.';
--! EndIncluded functions/metric_values.sql
--! Included functions/prune.sql
create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_quarantined bigint;
  v_events bigint;
  v_commands bigint;
  v_dispatches bigint;
  v_rollups bigint;
begin
  delete from fleet.heartbeat_quarantine q
  using fleet.settings s
  where q.received_at < p_now - s.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  using fleet.settings s
  where e.at < p_now - s.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.device_commands c
  using fleet.settings s
  where c.created_at < p_now - s.commands_keep;
  get diagnostics v_commands = row_count;
  delete from fleet.command_dispatch_log l
  using fleet.settings s
  where l.at < p_now - s.commands_keep;
  get diagnostics v_dispatches = row_count;
  delete from fleet.device_availability_daily a
  using fleet.settings s
  where a.day < p_now - greatest(s.rollups_keep, s.retention);
  get diagnostics v_rollups = row_count;
  delete from fleet.rolled_up_days r
  using fleet.settings s
  where r.day < p_now - greatest(s.rollups_keep, s.retention);
  delete from fleet.late_arrivals l
  using fleet.settings s
  where l.day < p_now - greatest(s.rollups_keep, s.retention);
  delete from fleet.storage_daily d
  using fleet.settings s
  where d.day < p_now - s.rollups_keep;
  delete from fleet.token_change_log l
  where l.changed_at < p_now - interval '7 days';
  delete from fleet.cohorts c
  where c.min_interval is null and c.changed_at < p_now - interval '7 days';
  delete from fleet.slo_counts c
  where c.minute < p_now - interval '7 days';
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches + v_rollups;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Removes quarantined heartbeats, events, commands and rollups that are past their time; returns how many. Run by fleet.nightly().';
--! EndIncluded functions/prune.sql
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
  fleet.fleet_silence, fleet.missed_beats, fleet.silence_samples, fleet.adoption_progress, fleet.device_availability, fleet.slo
to fleet_reader, fleet_dba;
grant execute on function fleet.device_availability(date, date, bigint, timestamptz) to fleet_reader, fleet_dba;
-- For the ops page.
grant select on fleet.partition_health, fleet.archives, fleet.job_health to fleet_server;
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
