--! Previous: sha1:c1eae273d7013270bce6760e6635664c46f11085
--! Hash: sha1:ab983bf6d76da303420a30347c9c22ea36c5fa4d
--! Message: Force a stuck run, make up for a missed night

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
declare
  v_key bigint := hashtextextended('fleet.' || p_lock, 0);
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
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted
      and l.database = (select d.oid from pg_database d where d.datname = current_database())
      and l.objsubid = 1
      and (l.classid::bigint << 32 | l.objid::bigint) = v_key
      and l.pid <> pg_backend_pid();
end
$$;

comment on function fleet.force_unlock(text) is
  'Ends the backend that holds the lock of a stuck maintenance or reconcile, and says who it was; what it had not committed is undone, the next run goes on from there. Example: select * from fleet.force_unlock(''maintenance'');';
--! EndIncluded functions/force_unlock.sql
--! Included functions/is_night_missed.sql
create or replace function fleet.is_night_missed(p_now timestamptz default now()) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select not exists (
      select from fleet.events e
      where e.event = 'nightly.start' and e.at > p_now - interval '25 hours'
    )
    -- A new store waits for its first night.
    and exists (select from fleet.hb_partitions p where p.created_at <= p_now - interval '25 hours');
$$;

comment on function fleet.is_night_missed(timestamptz) is
  'True when fleet.nightly() was not begun for 25 hours: fleet.maintain() then makes up for it.';
--! EndIncluded functions/is_night_missed.sql
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
    select l.pid into v_holder
    from pg_locks l
    where l.locktype = 'advisory' and l.granted
      and l.database = (select oid from pg_database where datname = current_database())
      and (l.classid::bigint << 32 | l.objid::bigint) = v_key;
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
--! Included functions/heal_last_status.sql
-- Driven from the roster: one index probe a device and partition, where a scan of the day's heartbeats would read them all.
create or replace function fleet.heal_last_status(
  p_window interval,
  p_max_rows integer,
  out checked bigint,
  out updated bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz := now() - p_window;
  v_after bigint;
  v_last bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('fleet.reconcile', 0)) then
    raise exception using
      errcode = 'FL003',
      message = 'last status is being reconciled by another session',
      hint = 'Wait for it. If it is stuck: select * from fleet.force_unlock(''reconcile'');';
  end if;
  -- A run that reached its limit left the devices behind the last one to the next: those that drift again and again
  -- cannot keep it from them.
  select position into v_after from fleet.cursors where cursor_name = 'reconcile';
  with newest as materialized (
    select d.device_id, h.ts, h.received_at, h.battery_pct, h.network_type, h.unity_running, h.signal_dbm, h.agent_version,
      h.ip, ls.last_ts
    from fleet.devices d
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    left join lateral (
      select b.*
      from fleet.device_heartbeats b
      where b.device_id = d.device_id and b.ts >= v_since
      order by b.ts desc
      limit 1
    ) h on true
  ),
  behind as (
    select n.*
    from newest n
    where n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id <= coalesce(v_after, 0), n.device_id
    limit p_max_rows
  ),
  healed as (
    insert into fleet.device_last_status as ls (
      device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, status
    )
    select n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version,
      n.ip, case when n.unity_running is false then 'unity_down' else 'ok' end
    from behind n
    order by n.device_id  -- the order in which ingest locks them
    on conflict (device_id) do update
      set last_ts = excluded.last_ts,
        last_received_at = excluded.last_received_at,
        battery_pct = excluded.battery_pct,
        network_type = excluded.network_type,
        unity_running = excluded.unity_running,
        signal_dbm = excluded.signal_dbm,
        agent_version = excluded.agent_version,
        ip = excluded.ip,
        status = excluded.status
      where ls.last_ts is null or ls.last_ts < excluded.last_ts
    returning ls.device_id
  )
  select (select count(*) from newest), (select count(*) from healed),
    (
      select b.device_id from behind b order by b.device_id <= coalesce(v_after, 0) desc, b.device_id desc limit 1
    )
  into checked, updated, v_last;
  insert into fleet.cursors as c (cursor_name, position)
  values ('reconcile', case when updated < p_max_rows then 0 else v_last end)
  on conflict (cursor_name) do update
    set position = excluded.position
    where c.position <> excluded.position;
end
$$;

comment on function fleet.heal_last_status(interval, integer) is
  'Moves last status forward to the newest stored heartbeat within a window, for at most so many devices. Behind fleet.reconcile() and fleet.backfill_last_status().';
--! EndIncluded functions/heal_last_status.sql
--! Included procedures/maintain.sql
create or replace procedure fleet.maintain(inout p_run_id bigint default null, p_now timestamptz default now())
language plpgsql
as $$
declare
  v_failed integer := 0;
  v_nightly bigint;
begin
  p_run_id := fleet.begin_run('maintain');
  commit;
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  perform fleet.end_run(p_run_id, 'maintain', v_failed);
  commit;
  -- Postgres or pg_cron was down at three.
  if fleet.is_night_missed(p_now) then
    call fleet.nightly(v_nightly, null, p_now);
  end if;
end
$$;

comment on procedure fleet.maintain(bigint, timestamptz) is
  'Makes the partitions ahead, and makes up for a night that was missed. Run hourly by pg_cron; safe at any time. Example: call fleet.maintain();';
--! EndIncluded procedures/maintain.sql
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
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.metric_values()
to fleet_server;

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
  fleet.fail_restore(text, text, text)
to fleet_archiver;

grant select on
  fleet.device_status, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.job_health
to fleet_reader, fleet_dba;
-- What the view job_health calls.
grant execute on function fleet.job_history() to fleet_reader, fleet_dba;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log
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
