--! Previous: sha1:68a4fc24997d64bb22e5e423b26519b9543769d4
--! Hash: sha1:c1eae273d7013270bce6760e6635664c46f11085
--! Message: Autovacuum by age, a cursor for reconcile

alter table fleet.hb_partitions add column cold_xid xid;
comment on column fleet.hb_partitions.cold_xid is
  'Transaction in which it became cold; until a VACUUM (FREEZE) after it, the job fleet-freeze names the partition. Null: not cold.';

create table fleet.cursors (
  cursor_name text not null,
  position bigint not null,
  constraint cursors_pkey primary key (cursor_name)
);
comment on table fleet.cursors is 'Where work that is done in portions goes on.';
comment on column fleet.cursors.cursor_name is 'The work: reconcile.';
comment on column fleet.cursors.position is 'Key of the last row that was done; 0: from the start.';

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
      hint = 'Wait for it, or see: select * from pg_locks where locktype = ''advisory'';';
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
--! Included functions/reconcile.sql
create or replace function fleet.reconcile(
  p_window interval default '24 hours',
  p_max_rows integer default 5000,
  out checked bigint,
  out updated bigint,
  out elapsed_ms bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz := clock_timestamp();
begin
  if p_window is null or p_window <= interval '0' or p_max_rows is null or p_max_rows < 1 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot reconcile a window of %s and %s rows', coalesce(p_window::text, 'null'), coalesce(p_max_rows::text, 'null')),
      hint = 'Example: select * from fleet.reconcile(''24 hours'', 5000);';
  end if;
  select h.checked, h.updated into checked, updated from fleet.heal_last_status(p_window, p_max_rows) h;
  elapsed_ms := fleet.elapsed_ms(v_since);
  perform fleet.count_up('reconciliation_rows_updated_total', updated);
  perform fleet.record_event('reconciliation.completed', p_rows => updated, p_duration_ms => elapsed_ms);
end
$$;

comment on function fleet.reconcile(interval, integer) is
  'Repairs last status where it is behind the stored heartbeats of a window; newest wins. What is beyond p_max_rows is left to the next run, which goes on from there. Run hourly. Example: select * from fleet.reconcile();';
--! EndIncluded functions/reconcile.sql
--! Included functions/set_temperatures.sql
-- Hot partitions grow all day; recent ones get a late row now and then; cold ones never change again.
create or replace function fleet.set_temperatures(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition record;
  v_count integer := 0;
begin
  for v_partition in
    select a.relid, a.partition_name, w.temperature, w.options
    from fleet.attached_partitions() a
    join pg_class c on c.oid = a.relid
    cross join fleet.settings s
    cross join lateral (
      select case
        when a.range_end > p_now then 'hot'
        when a.range_end > p_now - s.max_late then 'recent'
        else 'cold'
      end as temperature
    ) t
    cross join lateral (
      values
        -- In small steps, so that the visibility map and the statistics follow the day.
        ('hot', array['autovacuum_analyze_scale_factor=0.02', 'autovacuum_vacuum_insert_scale_factor=0.05']),
        ('recent', array[]::text[]),
        -- It is frozen once by the job fleet-freeze; the vacuum against wraparound runs all the same.
        ('cold', array['autovacuum_enabled=false'])
    ) as w (temperature, options)
    where w.temperature = t.temperature
      and w.options <> array(select o from unnest(c.reloptions) as o order by o)
    order by a.range_start
  loop
    execute format(
      'alter table %s reset (autovacuum_enabled, autovacuum_analyze_scale_factor, autovacuum_vacuum_insert_scale_factor)',
      v_partition.relid::regclass
    );
    if cardinality(v_partition.options) > 0 then
      execute format('alter table %s set (%s)', v_partition.relid::regclass, array_to_string(v_partition.options, ', '));
    end if;
    update fleet.hb_partitions
    set cold_xid = case v_partition.temperature when 'cold' then pg_current_xact_id()::xid end
    where partition_name = v_partition.partition_name;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.set_temperatures(timestamptz) is
  'Sets the autovacuum parameters of partitions as they age: hot (today and ahead), recent (within max_late) and cold; returns how many changed. Run by fleet.nightly().';
--! EndIncluded functions/set_temperatures.sql
--! Included functions/job_definitions.sql
create or replace function fleet.job_definitions()
returns table (jobname text, schedule text, command text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    -- Half an hour away from the night, with which it shares a lock.
    ('fleet-maintain', '35 * * * *', 'call fleet.maintain()'),
    ('fleet-nightly', '0 3 * * *', 'call fleet.nightly()'),
    ('fleet-reconcile', '5 * * * *', 'select fleet.reconcile()'),
    ('fleet-archive-wake', '*/10 * * * *', 'select fleet.wake_archiver()'),
    ('fleet-prune-cron-history', '20 4 * * *',
      $job$delete from cron.job_run_details where end_time < now() - interval '14 days'$job$)
  union all
  -- VACUUM cannot run in a function: a statement that names the tables, made anew by each night.
  select 'fleet-vacuum', '45 3 * * *', coalesce(
    (
      select format('vacuum (analyze) %s', string_agg(format('fleet.%I', a.partition_name), ', ' order by a.range_start))
      from fleet.attached_partitions() a
      where a.range_end > now() - interval '7 days' and a.range_start <= now()
    ),
    'vacuum (analyze) fleet.device_last_status'
  )
  union all
  select 'fleet-freeze', '15 4 * * *',
    format('vacuum (freeze, analyze) %s', string_agg(format('fleet.%I', p.partition_name), ', ' order by p.range_start))
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where p.state in ('active', 'restored')
    and age(c.relfrozenxid) > age(p.cold_xid)
    and pg_relation_size(c.oid) > 0
  having count(*) > 0;
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron has to run for the store, with their schedules in GMT. fleet-freeze is among them while a cold partition is not frozen yet.';
--! EndIncluded functions/job_definitions.sql
--! Included functions/schedule_vacuum.sql
create or replace function fleet.schedule_vacuum() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    return 0;
  end if;
  return (select count(*) from fleet.schedule_jobs() j where j.jobname in ('fleet-vacuum', 'fleet-freeze'));
end
$$;

comment on function fleet.schedule_vacuum() is
  'Gives pg_cron the partitions that it has to vacuum and to freeze next; returns how many jobs that takes, 0 where pg_cron is in another database. Run by fleet.nightly().';
--! EndIncluded functions/schedule_vacuum.sql
--! Included functions/do_step.sql
create or replace function fleet.do_step(p_step text, p_partition text, p_now timestamptz) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  case p_step
    when 'premake' then
      return (select count(*) from fleet.premake(p_now));
    when 'refresh_sizes' then
      return fleet.refresh_sizes(p_now);
    when 'set_temperatures' then
      return fleet.set_temperatures(p_now);
    when 'schedule_vacuum' then
      return fleet.schedule_vacuum();
    when 'retire' then
      return fleet.retire_partition(p_partition, p_now);
    when 'prune' then
      return fleet.prune(p_now);
    when 'retry_failed_archives' then
      return fleet.retry_failed_archives();
    when 'wake_archiver' then
      return fleet.wake_archiver('nightly')::integer;
  end case;
end
$$;

comment on function fleet.do_step(text, text, timestamptz) is
  'One step of maintenance by name; returns how many partitions or rows it concerned.';
--! EndIncluded functions/do_step.sql
--! Included procedures/nightly.sql
create or replace procedure fleet.nightly(
  inout p_run_id bigint default null,
  p_retention interval default null,
  p_now timestamptz default now()
)
language plpgsql
as $$
declare
  v_failed integer := 0;
  v_partition text;
begin
  p_run_id := fleet.begin_run('nightly');
  commit;
  -- Premake comes first and alone: ingest depends on it, on nothing below.
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'refresh_sizes', null, p_now, v_failed);
  foreach v_partition in array array(
    select r.partition_name
    from fleet.retention_plan(p_retention, p_now) r
    where r.action = 'retire'
    order by r.range_start
  ) loop
    call fleet.run_step(p_run_id, 'retire', v_partition, p_now, v_failed);
  end loop;
  call fleet.run_step(p_run_id, 'set_temperatures', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'schedule_vacuum', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'prune', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'retry_failed_archives', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'wake_archiver', null, p_now, v_failed);
  perform fleet.end_run(p_run_id, 'nightly', v_failed);
end
$$;

comment on procedure fleet.nightly(bigint, interval, timestamptz) is
  'The night''s work, each step in its own transaction: premake, count, retire what is past the retention, set autovacuum by age, prune, wake the archiver. Answers its run_id for fleet.run_steps(). See first: select * from fleet.nightly_plan(). Example: call fleet.nightly();';
--! EndIncluded procedures/nightly.sql
--! Included views/job_health.sql
create or replace view fleet.job_health as
select h.jobname, h.schedule,
  case
    when h.is_active is null then 'missing'
    when not h.is_active then 'disabled'
    when h.last_start is null then 'waiting'
    when h.last_status = 'failed' then 'failed'
    when h.last_success is null or now() - h.last_success > case
      when h.schedule like '*/10 %' then interval '25 minutes'
      when split_part(h.schedule, ' ', 2) = '*' then interval '125 minutes'
      else interval '25 hours'
    end then 'late'
    else 'ok'
  end as status,
  h.last_start, h.last_status, h.last_message, h.last_success
from fleet.job_history() h
order by h.jobname;

comment on view fleet.job_health is
  'The pg_cron jobs of the store: ok, waiting (never run yet), late, failed, disabled or missing. Example: select * from fleet.job_health where status <> ''ok'';';
--! EndIncluded views/job_health.sql
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
  fleet.elapsed_ms(timestamptz)
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
