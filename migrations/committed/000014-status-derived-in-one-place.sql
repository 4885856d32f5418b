--! Previous: sha1:87b2353c917e34fb8287733d24583988f0bea8b0
--! Hash: sha1:9a8703fba9ba04b91b2844dece32eda493cf176b
--! Message: status derived in one place

-- Enter migration here
--! Included functions/expected_interval.sql
-- No SET clause and a body bound when it is made, so that views have it inline. Times are subtracted, never an interval added to
-- one: what a day is long would then depend on the session's TimeZone, twice a year.
create or replace function fleet.expected_interval(
  p_own interval,
  p_min interval,
  p_last interval,
  p_changed_at timestamptz,
  p_now timestamptz
) returns interval
language sql
immutable
parallel safe
return greatest(
  p_own,
  p_min,
  -- A cohort that is slowed no longer hears of it with its next answers; until then its devices keep to the old pace.
  case when p_now - p_changed_at < 2 * p_last then p_last end
);

comment on function fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz) is
  'How often a device is to be heard from at this time, by devices.heartbeat_interval and its row of cohorts (min_interval, last_interval, changed_at; nulls when it has none): the longer of its own and the cohort''s, and for two old intervals after a change the old one if that is longer. Example: select fleet.expected_interval(''60 s'', ''5 min'', null, null, now());';
--! EndIncluded functions/expected_interval.sql
--! Included functions/late_after.sql
create or replace function fleet.late_after(p_expected interval) returns interval
language sql
immutable
parallel safe
return 1.5 * p_expected + interval '15 seconds';

comment on function fleet.late_after(interval) is
  'The silence after which a device is late: one interval, half of one for jitter (60 s ± 15 s is what agents do), and 15 seconds for the way here. Example: select fleet.late_after(''60 s'');';
--! EndIncluded functions/late_after.sql
--! Included functions/derive_status.sql
-- As fleet.expected_interval(): inline in the views.
create or replace function fleet.derive_status(
  p_is_skewed boolean,
  p_last_ts timestamptz,
  p_expected interval,
  p_offline_after interval,
  p_now timestamptz
) returns text
language sql
immutable
parallel safe
return case
  when p_is_skewed then 'clock_skewed'
  when p_last_ts is null then 'new'
  -- Never less than two intervals: one lost heartbeat is no outage.
  when p_now - p_last_ts > greatest(p_offline_after, 2 * p_expected) then 'offline'
  when p_now - p_last_ts > fleet.late_after(p_expected) then 'late'
  else 'online'
end;

comment on function fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz) is
  'What a device is at this time: clock_skewed (its newest heartbeat was refused for its ts), new (none yet), offline (silent for longer than settings.offline_after and than two expected intervals), late (for longer than fleet.late_after()), or online. Example: select fleet.derive_status(false, now() - interval ''3 min'', ''60 s'', ''10 min'', now());';
--! EndIncluded functions/derive_status.sql
--! Included functions/set_cohort_interval.sql
create or replace function fleet.set_cohort_interval(p_cohort text, p_interval interval) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval;
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
  end if;
  if p_interval < interval '1 second' or p_interval > interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('interval %s is not between 1 second and 1 day', p_interval),
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes''); null removes it.';
  end if;
  -- Two at once would both see the same old value. Readers do not wait.
  lock table fleet.cohorts in share row exclusive mode;
  select min_interval into v_old from fleet.cohorts where cohort = p_cohort;
  if v_old is distinct from p_interval then
    insert into fleet.cohorts as c (cohort, min_interval)
    values (p_cohort, p_interval)
    on conflict (cohort) do update
      set min_interval = excluded.min_interval,
        last_interval = greatest(
          c.min_interval,
          case when now() - c.changed_at < 2 * c.last_interval then c.last_interval end
        ),
        changed_at = now();
    insert into fleet.settings_audit (setting, old_value, new_value)
    values ('cohort_interval:' || p_cohort, v_old, p_interval);
    perform pg_notify('fleet_tokens', 'cohort:' || p_cohort);
  end if;
  return format(
    'cohort %s: %s (was %s); it has %s devices', p_cohort,
    coalesce('at least ' || p_interval || ' between heartbeats', 'not slowed'),
    coalesce(v_old::text, 'not slowed'),
    (select count(*) from fleet.devices where cohort = p_cohort and revoked_at is null)
  );
end
$$;

comment on function fleet.set_cohort_interval(text, interval) is
  'Slows a cohort: none of its devices is asked to send more often than this; null lets each follow its own interval again. A device learns it with its next answer. Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
--! EndIncluded functions/set_cohort_interval.sql
--! Included views/device_state.sql
-- The setting as a subquery: joined, a table of one row is guessed to have hundreds, and so is everything that follows.
create or replace view fleet.device_state as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    ls.status = 'clock_skewed', ls.last_ts, i.expected, (select s.offline_after from fleet.settings s), now()
  ) as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_ts)::bigint as seconds_since,
  ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at,
  ls.is_silent, ls.status as said, i.expected as expected_interval
from fleet.devices d
left join fleet.device_last_status ls using (device_id)
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
where d.revoked_at is null;

comment on view fleet.device_state is
  'fleet.device_status and what its indexes are on: is_silent, the mark of devices that may be offline, and said, the stored status; and the interval by which status is judged. Behind the other views and fleet.list_devices().';
--! EndIncluded views/device_state.sql
--! Included views/device_status_legacy.sql
-- Partitions are read newest first until one has a row. None can be further ahead than settings.max_future may be.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    q.received_at > coalesce(h.received_at, '-infinity'), h.ts, i.expected, (select s.offline_after from fleet.settings s), now()
  ) as status,
  h.ts as last_ts,
  extract(epoch from now() - h.ts)::bigint as seconds_since,
  h.battery_pct, h.network_type, h.unity_running, h.signal_dbm, h.agent_version, h.ip,
  greatest(h.received_at, q.received_at) as last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (  -- as in fleet.device_state
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
left join lateral (
  select b.*
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts <= now() + interval '1 day'
  order by b.ts desc
  limit 1
) h on true
left join lateral (
  select max(r.received_at) as received_at
  from fleet.heartbeat_quarantine r
  where r.device_id = d.device_id and r.reason in ('too_late', 'in_future')
) q on true
where d.revoked_at is null;

comment on view fleet.device_status_legacy is
  'What fleet.device_status says, from the heartbeats themselves and without fleet.device_last_status: slow, for comparison and as the server''s way out (READ_FROM_LAST_STATUS=false). Example: select * from fleet.device_status_legacy where device_id = 42;';
--! EndIncluded views/device_status_legacy.sql
--! Included views/devices_offline.sql
-- One of the two halves is never run: the choice is made once, before the first row. In the first, OFFSET 0 keeps the planner
-- from joining the whole fleet to a few: it cannot guess how many are offline.
create or replace view fleet.devices_offline as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_last_status ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where fleet.marks_hold()
  and ls.is_silent and now() - ls.last_ts > (select s.offline_after from fleet.settings s)
  and d.status = 'offline'
union all
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_state d
where not fleet.marks_hold() and d.status = 'offline'
order by last_ts;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first. Example: select * from fleet.devices_offline where seconds_since > 720;';
--! EndIncluded views/devices_offline.sql
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
  fleet.marks_hold(interval),  -- what the view devices_offline calls
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz)
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
