--! Previous: sha1:fdb71fe028e2fa8c20bb941b2b13bd2bf582ee88
--! Hash: sha1:61337d7ceac6f333a8586ac19de361814749f4fb
--! Message: Device status from the heartbeats themselves

-- Enter migration here
--! Included views/device_status_legacy.sql
-- Partitions are read newest first until one has a row. None can be further ahead than settings.max_future may be.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  case
    when q.received_at > coalesce(h.received_at, '-infinity') then 'clock_skewed'
    when h.ts is null then 'new'
    when now() - h.ts > greatest((select s.offline_after from fleet.settings s), 2 * i.expected) then 'offline'
    when now() - h.ts > 1.5 * i.expected + interval '15 seconds' then 'late'
    else 'online'
  end as status,
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
    greatest(
      d.heartbeat_interval,
      c.min_interval,
      case when now() < c.changed_at + 2 * c.last_interval then c.last_interval end
    ) as expected
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
--! Included functions/list_devices_legacy.sql
create or replace function fleet.list_devices_legacy(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100
) returns setof fleet.device_status_legacy
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select d.*
  from fleet.device_status_legacy d
  where d.device_id > p_after
    and (p_status is null or d.status = p_status)
    and (p_older_than is null or d.last_ts < now() - p_older_than)
  order by d.device_id
  limit p_limit;
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer) is
  'fleet.list_devices() over fleet.device_status_legacy. Example: select alias from fleet.list_devices_legacy(''offline'', ''12 minutes'');';
--! EndIncluded functions/list_devices_legacy.sql
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
  fleet.check(),
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
