--! Previous: sha1:aa49662b862f06391067aafdac405b6a1d0cd32f
--! Hash: sha1:aa0c381c67154e80d4986530aa7d88430022d31e
--! Message: the trend of the fleet

create table fleet.fleet_samples (
  sampled_at timestamptz not null,
  devices bigint not null,
  online bigint not null,
  late bigint not null,
  offline bigint not null,
  new bigint not null,
  clock_skewed bigint not null,
  unity_down bigint not null,
  constraint fleet_samples_pkey primary key (sampled_at)
);
comment on table fleet.fleet_samples is 'fleet.fleet_summary of the whole fleet each 10 minutes, of the last 8 days. Read it through fleet.fleet_trend.';
comment on column fleet.fleet_samples.sampled_at is 'Begin of the 10 minutes.';
comment on column fleet.fleet_samples.devices is 'Devices that were enrolled.';
comment on column fleet.fleet_samples.online is 'Those of them that were online.';
comment on column fleet.fleet_samples.late is 'Those that were late.';
comment on column fleet.fleet_samples.offline is 'Those that were offline.';
comment on column fleet.fleet_samples.new is 'Those that had not sent a heartbeat yet.';
comment on column fleet.fleet_samples.clock_skewed is 'Those whose heartbeats were kept aside for their clock.';
comment on column fleet.fleet_samples.unity_down is 'Those online or late on which Unity was down.';

--! Included functions/sample_fleet.sql
create or replace function fleet.sample_fleet() returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  delete from fleet.fleet_samples s
  where s.sampled_at < now() - interval '8 days';
  insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
  select date_bin('10 minutes', now(), '2000-01-01Z'), f.devices, f.online, f.late, f.offline, f.new, f.clock_skewed, f.unity_down
  from fleet.fleet_summary f
  where f.cohort = '(all)'
    -- Nine times of ten it is there, and nobody is counted.
    and not exists (select from fleet.fleet_samples s where s.sampled_at = date_bin('10 minutes', now(), '2000-01-01Z'))
  on conflict do nothing;
$$;

comment on function fleet.sample_fleet() is
  'Once in 10 minutes, keeps the counts of fleet.fleet_summary for fleet.fleet_trend. Called each minute by fleet.mark_silent(). Example: select fleet.sample_fleet();';
--! EndIncluded functions/sample_fleet.sql
--! Included views/fleet_trend.sql
create or replace view fleet.fleet_trend as
select s.sampled_at, s.devices, s.online, s.late, s.offline, s.new, s.clock_skewed, s.unity_down
from fleet.fleet_samples s
order by s.sampled_at;

comment on view fleet.fleet_trend is
  'How many devices were online, late, offline, … in each 10 minutes of the last 8 days, oldest first; where nothing ran there is no row. Example: select sampled_at, offline from fleet.fleet_trend where sampled_at > now() - interval ''1 day'';';
--! EndIncluded views/fleet_trend.sql
--! Included procedures/mark_silent.sql
-- Devices become silent by time alone, so no heartbeat can mark them. Marked early, at three quarters of the time after
-- which they are offline, so that between two runs nobody is offline without the mark; what is read through the mark is
-- always compared with the clock again.
create or replace procedure fleet.mark_silent(p_max_rows integer default 50000, p_now timestamptz default now())
language plpgsql
as $$
declare
  c_batch constant integer := 5000;
  v_base interval;
  v_changes bigint;
  v_rows integer;
  v_left integer := p_max_rows;
begin
  select greatest(least(s.offline_after, interval '10 minutes'), interval '5 minutes'), m.changes
  into v_base, v_changes
  from fleet.settings s
  cross join fleet.silence_marks m;
  loop
    -- In device_id order, as ingest; a batch is a short transaction, because a device that comes back waits for it.
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = true
    from (
      select l.device_id
      from fleet.device_last_status l
      where not l.is_silent and l.last_ts < p_now - v_base * 0.75
        and l.last_ts < p_now - 1.5 * (select d.heartbeat_interval from fleet.devices d where d.device_id = l.device_id)
      order by l.device_id
      limit least(c_batch, v_left)
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  -- With rows left over the marks are not complete: reads go on without them, which suits a fleet that is mostly silent.
  if v_left > 0 then
    update fleet.silence_marks m
    set marked_at = p_now, base = v_base
    where m.changes = v_changes;
  end if;
  commit;

  -- Marks that no heartbeat took away: those set where nobody knew better.
  loop
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = false
    from (
      select l.device_id
      from fleet.device_last_status l
      where l.is_silent and (l.last_ts is null or l.last_ts >= p_now - interval '2 minutes')
      order by l.device_id
      limit least(c_batch, greatest(v_left, 0))
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  commit;

  perform fleet.watch_silence(p_now);
  commit;

  perform fleet.sample_fleet();
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'Sets device_last_status.is_silent for devices silent for three quarters of the time after which they are offline, so that lists of offline devices need no look at the others. Run each minute by pg_cron; if it is not, lists are as right, and slower. Then calls fleet.watch_silence() and fleet.sample_fleet(). Example: call fleet.mark_silent();';
--! EndIncluded procedures/mark_silent.sql
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
