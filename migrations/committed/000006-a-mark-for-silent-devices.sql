--! Previous: sha1:ab983bf6d76da303420a30347c9c22ea36c5fa4d
--! Hash: sha1:2bcc5f69d780cca2b2e506ecc09919bad24d291a
--! Message: A mark for silent devices

-- Enter migration here
create table fleet.silence_marks (
  is_only_row boolean not null default true,
  marked_at timestamptz not null default '-infinity',
  base interval not null default '10 minutes',
  changes bigint not null default 0,
  constraint silence_marks_pkey primary key (is_only_row),
  constraint silence_marks_only_row check (is_only_row)
);
comment on table fleet.silence_marks is 'Since when the marks device_last_status.is_silent are complete; one row. Kept by fleet.mark_silent().';
comment on column fleet.silence_marks.is_only_row is 'Always true: there is one row.';
comment on column fleet.silence_marks.marked_at is 'As of when every device silent for long enough bore the mark; -infinity when it is not known.';
comment on column fleet.silence_marks.base is 'The marks were set after three quarters of this, or of twice the device''s heartbeat_interval if that is longer.';
comment on column fleet.silence_marks.changes is 'Grows with each change of a heartbeat_interval: a run that one overtakes does not count.';
insert into fleet.silence_marks default values;

-- The devices that are there begin without the mark, to be set where it is due; new rows begin with it.
alter table fleet.device_last_status add column is_silent boolean not null default false;
alter table fleet.device_last_status alter column is_silent set default true;
comment on column fleet.device_last_status.is_silent is
  'True when the device may have been silent for long: what is not marked is not offline. Set by fleet.mark_silent(), taken away by a fresh heartbeat; changes seldom, so that updates stay HOT.';
comment on table fleet.device_last_status is
  'The newest heartbeat of each device, kept by a trigger. No index on last_ts: with one, no update is HOT and upserts run at half the rate. is_silent is the way to the silent ones.';
create index device_last_status_silent_idx on fleet.device_last_status (device_id) where is_silent;
comment on index fleet.device_last_status_silent_idx is 'The devices that may be offline.';
create index device_last_status_not_ok_idx on fleet.device_last_status (device_id) where status <> 'ok';
comment on index fleet.device_last_status_not_ok_idx is 'The devices whose Unity app is down, or whose clock is wrong.';
create index devices_heartbeat_interval_idx on fleet.devices (heartbeat_interval);
comment on index fleet.devices_heartbeat_interval_idx is 'The devices that are asked for a heartbeat seldom.';

--! Included functions/marks_hold.sql
create or replace function fleet.marks_hold(p_age interval default null) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select now() <= m.marked_at + m.base / 4 and s.offline_after >= m.base and coalesce(p_age, s.offline_after) >= m.base
  from fleet.silence_marks m
  cross join fleet.settings s;
$$;

comment on function fleet.marks_hold(interval) is
  'Whether every device silent for at least so long (default: settings.offline_after) bears the mark device_last_status.is_silent, except those asked for a heartbeat less often than twice in that time; if not, read without the mark. See fleet.mark_silent().';
--! EndIncluded functions/marks_hold.sql
--! Included functions/forget_marks.sql
create or replace function fleet.forget_marks() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.silence_marks
  set marked_at = '-infinity', changes = changes + 1;
  return null;
end
$$;

comment on function fleet.forget_marks() is
  'Trigger on fleet.devices: with other heartbeat intervals devices are offline after other times, so that the marks of fleet.mark_silent() wait for its next run.';
--! EndIncluded functions/forget_marks.sql
--! Included functions/record_last_status.sql
-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500. In device_id order: concurrent batches of
-- the same devices deadlock otherwise.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.device_last_status as ls (
    device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, status,
    is_silent
  )
  select distinct on (n.device_id)
    n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip,
    case when n.unity_running is false then 'unity_down' else 'ok' end,
    -- A fresh heartbeat takes the mark away, a buffered old one does not. Rarely changes anything: the update stays HOT.
    n.ts < now() - interval '2 minutes'
  from new_rows n
  order by n.device_id, n.ts desc
  on conflict (device_id) do update
    set last_ts = excluded.last_ts,
      last_received_at = excluded.last_received_at,
      battery_pct = excluded.battery_pct,
      network_type = excluded.network_type,
      unity_running = excluded.unity_running,
      signal_dbm = excluded.signal_dbm,
      agent_version = excluded.agent_version,
      ip = excluded.ip,
      status = excluded.status,
      is_silent = excluded.is_silent
    -- A late arrival must not rewind a device.
    where ls.last_ts is null or ls.last_ts < excluded.last_ts;
  return null;
end
$$;

comment on function fleet.record_last_status() is
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device.';
--! EndIncluded functions/record_last_status.sql
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
      device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, status,
      is_silent
    )
    select n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version,
      n.ip, case when n.unity_running is false then 'unity_down' else 'ok' end,
      true  -- this may take minutes: fleet.mark_silent() sees to it
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
        status = excluded.status,
        is_silent = excluded.is_silent
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
--! Included functions/create_device.sql
create or replace function fleet.create_device(
  p_alias text,
  p_cohort text default 'default',
  out device_id bigint,
  out token text
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.enroll_device(''lobby-tablet-7'');';
  end if;
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Leave it out for the cohort named default.';
  end if;
  token := fleet.make_token('nxd_');
  insert into fleet.devices as d (alias, cohort, token_hash)
  values (p_alias, p_cohort, fleet.hash_token(token))
  on conflict (alias) do nothing
  returning d.device_id into create_device.device_id;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('a device with alias %s is enrolled already', p_alias),
      hint = 'Aliases are unique, also those of revoked devices; choose another.';
  end if;
  insert into fleet.device_last_status (device_id, is_silent)
  values (create_device.device_id, false);
end
$$;

comment on function fleet.create_device(text, text) is
  'Enrolls a device; returns its id and its token, which is shown only now. Example: select * from fleet.create_device(''lobby-tablet-7'', ''lobby'');';
--! EndIncluded functions/create_device.sql
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
    ('fleet-mark-silent', '* * * * *', 'call fleet.mark_silent()'),
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
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'Sets device_last_status.is_silent for devices silent for three quarters of the time after which they are offline, so that lists of offline devices need no look at the others. Run each minute by pg_cron; if it is not, lists are as right, and slower. Example: call fleet.mark_silent();';
--! EndIncluded procedures/mark_silent.sql
--! Included triggers/devices.sql
create or replace trigger devices_forget_marks
  after update of heartbeat_interval on fleet.devices
  for each statement execute function fleet.forget_marks();

comment on trigger devices_forget_marks on fleet.devices is 'A changed interval moves the time after which a device is offline.';
--! EndIncluded triggers/devices.sql
--! Included views/device_state.sql
-- The setting as a subquery: joined, a table of one row is guessed to have hundreds, and so is everything that follows.
create or replace view fleet.device_state as
select d.device_id, d.alias, d.cohort,
  case
    when ls.status = 'clock_skewed' then 'clock_skewed'
    when ls.last_ts is null then 'new'
    -- A little more than one interval of silence is jitter; offline is never less than two intervals.
    when now() - ls.last_ts > greatest((select s.offline_after from fleet.settings s), 2 * d.heartbeat_interval) then 'offline'
    when now() - ls.last_ts > 1.5 * d.heartbeat_interval + interval '15 seconds' then 'late'
    else 'online'
  end as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_ts)::bigint as seconds_since,
  ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.last_received_at,
  d.heartbeat_interval, d.enrolled_at,
  ls.is_silent, ls.status as said
from fleet.devices d
left join fleet.device_last_status ls using (device_id)
where d.revoked_at is null;

comment on view fleet.device_state is
  'fleet.device_status and what its indexes are on: is_silent, the mark of devices that may be offline, and said, the stored status. Behind the other views and fleet.list_devices().';
--! EndIncluded views/device_state.sql
--! Included views/device_status.sql
create or replace view fleet.device_status as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.unity_running,
  d.signal_dbm, d.agent_version, d.ip, d.last_received_at, d.heartbeat_interval, d.enrolled_at
from fleet.device_state d;

comment on view fleet.device_status is
  'Each enrolled device: new, online, late, offline or clock_skewed, and what it last said. Example: select status, count(*) from fleet.device_status group by status;';
--! EndIncluded views/device_status.sql
--! Included views/devices_offline.sql
-- One of the two halves is never run: the choice is made once, before the first row. In the first, OFFSET 0 keeps the planner
-- from joining the whole fleet to a few: it cannot guess how many are offline.
create or replace view fleet.devices_offline as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_last_status ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where fleet.marks_hold()
  and ls.is_silent and ls.last_ts < now() - (select s.offline_after from fleet.settings s)
  and d.status = 'offline'
union all
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_state d
where not fleet.marks_hold() and d.status = 'offline'
order by last_ts;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first. Example: select * from fleet.devices_offline where seconds_since > 720;';
--! EndIncluded views/devices_offline.sql
--! Included views/unity_down.sql
create or replace view fleet.unity_down as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.agent_version
from fleet.device_state d
where d.said = 'unity_down' and d.status in ('online', 'late')
order by d.last_ts desc;

comment on view fleet.unity_down is
  'Devices that are heard from and say that their Unity app does not run. Example: select alias from fleet.unity_down;';
--! EndIncluded views/unity_down.sql
--! Included views/job_health.sql
create or replace view fleet.job_health as
select h.jobname, h.schedule,
  case
    when h.is_active is null then 'missing'
    when not h.is_active then 'disabled'
    when h.last_start is null then 'waiting'
    when h.last_status = 'failed' then 'failed'
    when h.last_success is null or now() - h.last_success > case
      when h.schedule like '* %' then interval '5 minutes'
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
--! Included functions/list_devices.sql
-- One page by keyset. Built per call: which index serves depends on the arguments, and a plan for all of them serves none.
create or replace function fleet.list_devices(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100
) returns setof fleet.device_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off  -- reads what the page leaves out
as $$
declare
  v_found text := 'select ls.device_id from fleet.device_last_status ls where ls.device_id > $3';
  v_filter text := ' where true';
begin
  if p_status is not null then
    v_filter := v_filter || ' and d.status = $1';
  end if;
  if p_older_than is not null then
    v_filter := v_filter || ' and d.last_ts < now() - $2';
    v_found := v_found || ' and ls.last_ts < now() - $2';
  end if;

  if p_status = 'clock_skewed' then
    v_found := v_found || ' and ls.status = ''clock_skewed''';
  elsif p_status = 'offline' and fleet.marks_hold() then
    v_found := v_found || ' and ls.is_silent';
  elsif p_older_than is not null and fleet.marks_hold(p_older_than) then
    -- Devices asked for so few heartbeats may be silent for so long without the mark.
    if exists (select from fleet.devices d where d.heartbeat_interval > p_older_than / 2) then
      v_found := v_found || ' and not ls.is_silent'
        ' and ls.device_id in (select d.device_id from fleet.devices d where d.heartbeat_interval > $2 / 2)'
        ' union all ' || v_found;
    end if;
    v_found := v_found || ' and ls.is_silent';
  else
    return query execute 'select d.* from fleet.device_status d' || v_filter || ' and d.device_id > $3 order by d.device_id limit $4'
      using p_status, p_older_than, p_after, p_limit;
    return;
  end if;
  -- OFFSET 0 keeps the planner from joining the whole fleet to a few: it cannot guess how many have a status.
  return query execute 'select d.* from (' || v_found || ') found cross join lateral ('
    'select s.* from fleet.device_status s where s.device_id = found.device_id offset 0) d'
    || v_filter || ' order by found.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer) is
  'A page of fleet.device_status in device_id order, after a device_id: by status, and by time since the last heartbeat. Example: select alias from fleet.list_devices(''offline'', ''12 minutes'');';
--! EndIncluded functions/list_devices.sql
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
  fleet.list_devices(text, interval, bigint, integer),
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
