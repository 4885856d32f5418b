--! Previous: sha1:600d60be572ea740309c27ba6efe7bf272128f4a
--! Hash: sha1:a9fe27c7f3d6dc19659313e123871f076f32ac0b
--! Message: Availability by day, rolled up before the heartbeats leave

-- Enter migration here

alter table fleet.settings
  add column rollups_keep interval not null default '3 years',
  add constraint settings_rollups_keep_range check (rollups_keep >= '30 days');
comment on column fleet.settings.rollups_keep is
  'How long availability per day and the history of storage are kept. Availability never shorter than the retention.';

create table fleet.device_availability_daily (
  device_id bigint not null,
  day date not null,
  expected integer not null,
  seen integer not null,
  beats integer not null,
  heartbeat_interval interval not null,
  longest_gap interval not null,
  first_ts timestamptz,
  last_ts timestamptz,
  rolled_up_at timestamptz not null default now(),
  constraint device_availability_daily_pkey primary key (device_id, day),
  constraint device_availability_daily_seen_range check (seen >= 0 and seen <= expected and seen <= beats)
);
comment on table fleet.device_availability_daily is
  'Availability of each device on each past UTC day on which it was enrolled, counted by fleet.roll_up(); outlives the heartbeats. Kept fleet.settings.rollups_keep. Read the view fleet.device_availability.';
comment on column fleet.device_availability_daily.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_availability_daily.day is 'The day, in UTC.';
comment on column fleet.device_availability_daily.expected is
  'Heartbeats that were expected: as often as its interval fits between enrolment or midnight and revocation or midnight.';
comment on column fleet.device_availability_daily.seen is
  'Of those, the ones that came: the expected less those missed in silences; a burst does not count more than once.';
comment on column fleet.device_availability_daily.beats is 'Heartbeats stored.';
comment on column fleet.device_availability_daily.heartbeat_interval is
  'How often it was asked to send one when the day was first rolled up; stays when the day is counted anew.';
comment on column fleet.device_availability_daily.longest_gap is
  'Its longest silence of the day, from midnight or enrolment to midnight or revocation.';
comment on column fleet.device_availability_daily.first_ts is 'First heartbeat of the day; null when there was none.';
comment on column fleet.device_availability_daily.last_ts is 'Last heartbeat of the day; null when there was none.';
comment on column fleet.device_availability_daily.rolled_up_at is 'When this was counted, and last found different.';
create index device_availability_daily_day_idx on fleet.device_availability_daily (day);
comment on index fleet.device_availability_daily_day_idx is 'All devices of a day; for pruning.';

create table fleet.rolled_up_days (
  day date not null,
  devices integer not null,
  rolled_up_at timestamptz not null default now(),
  constraint rolled_up_days_pkey primary key (day)
);
comment on table fleet.rolled_up_days is 'The days that are in fleet.device_availability_daily.';
comment on column fleet.rolled_up_days.day is 'The day, in UTC.';
comment on column fleet.rolled_up_days.devices is
  'How many devices were on its roster. When that is not so any more, the night rolls the day up again.';
comment on column fleet.rolled_up_days.rolled_up_at is 'When it was last rolled up as a whole.';

create table fleet.late_arrivals (
  device_id bigint not null,
  day date not null,
  arrived_at timestamptz not null default now()
) with (
  -- Written by ingest, deleted within the hour, never updated: vacuumed by number, whatever is left in it.
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_threshold = -1,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 10000
);
comment on table fleet.late_arrivals is
  'Devices and past days of which heartbeats came after the day''s midnight, as often as they came. A day that is rolled up is counted anew for them, which takes them away.';
comment on column fleet.late_arrivals.device_id is 'fleet.devices.device_id.';
comment on column fleet.late_arrivals.day is 'The UTC day of the heartbeats.';
comment on column fleet.late_arrivals.arrived_at is 'When they came.';

create table fleet.storage_daily (
  day date not null,
  rows_online bigint not null,
  bytes_online bigint not null,
  bytes_archived bigint not null,
  bytes_pushed bigint not null,
  database_bytes bigint not null,
  noted_at timestamptz not null,
  constraint storage_daily_pkey primary key (day)
);
comment on table fleet.storage_daily is
  'The size of the store as each night found it. Kept fleet.settings.rollups_keep. Read the view fleet.storage_history.';
comment on column fleet.storage_daily.day is 'The UTC day.';
comment on column fleet.storage_daily.rows_online is 'Heartbeats in the database; of today''s partition what the last ANALYZE found.';
comment on column fleet.storage_daily.bytes_online is 'Bytes of their partitions, with indexes.';
comment on column fleet.storage_daily.bytes_archived is 'Bytes of all proven archives.';
comment on column fleet.storage_daily.bytes_pushed is 'Bytes written to the archive since setup, also those replaced since.';
comment on column fleet.storage_daily.database_bytes is 'Bytes of the whole database.';
comment on column fleet.storage_daily.noted_at is 'When that was so.';

drop procedure fleet.run_step(bigint, text, text, timestamptz, integer);
drop function fleet.do_step(text, text, timestamptz);
--! Included functions/find_day_table.sql
create or replace function fleet.find_day_table(p_day date) returns regclass
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.oid::regclass
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where p.range_start <= p_day and p.range_end > p_day;
$$;

comment on function fleet.find_day_table(date) is
  'The table that has the heartbeats of this day, attached or retired; null when there is none.';
--! EndIncluded functions/find_day_table.sql
--! Included functions/availability_of_day.sql
-- The one place where availability is counted: a day that is rolled up and one that is not cannot differ. Stable, so that it
-- reads with the snapshot of the statement that calls it: a rebuild counts the rows whose late arrivals it deletes.
create or replace function fleet.availability_of_day(
  p_day date,
  p_now timestamptz default now(),
  p_device_ids bigint[] default null
) returns setof fleet.device_availability_daily
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set work_mem = '64MB'
as $$
declare
  v_table regclass := fleet.find_day_table(p_day);
begin
  if v_table is null then
    return;
  end if;
  -- Planned anew for each call: a few devices are read by the index, all of them in one pass.
  return query execute format(
    $query$
      with roster as materialized (
        select d.device_id, i.heartbeat_interval, (extract(epoch from i.heartbeat_interval) * 1000000)::bigint as interval_us,
          greatest(d.enrolled_at, $1) as since, least(d.revoked_at, $2) as until
        from fleet.devices d
        left join fleet.cohorts c on c.cohort = d.cohort
        left join fleet.device_availability_daily a on a.device_id = d.device_id and a.day = $3
        -- What was asked of the device then: a change of cadence does not rewrite history.
        cross join lateral (
          select coalesce(a.heartbeat_interval, greatest(d.heartbeat_interval, c.min_interval)) as heartbeat_interval
        ) i
        where ($4 is null or d.device_id = any ($4))
          and greatest(d.enrolled_at, $1) < least(d.revoked_at, $2)
      ),
      silences as (
        select b.device_id, b.ts, r.heartbeat_interval, r.interval_us,
          b.ts - lag(b.ts, 1, r.since) over (partition by b.device_id order by b.ts) as silence
        from roster r
        join %s b on b.device_id = r.device_id and b.ts >= r.since and b.ts < r.until
        where b.ts >= $1 and b.ts < $2
      ),
      heard as (
        select s.device_id, count(*) as beats, max(s.silence) as longest, min(s.ts) as first_ts, max(s.ts) as last_ts,
          -- round(silence / interval) - 1, half up. Shorter silences miss none, and most are: they are not divided.
          sum((2 * round(date_part('epoch', s.silence) * 1000000)::bigint + s.interval_us) / (2 * s.interval_us) - 1)
            filter (where s.silence > s.heartbeat_interval) as missed
        from silences s
        group by s.device_id
      )
      select r.device_id, $3, e.expected::integer,
        least(coalesce(h.beats, 0), greatest(e.expected - coalesce(h.missed, 0) - e.missed_last, 0))::integer,
        coalesce(h.beats, 0)::integer, r.heartbeat_interval, greatest(h.longest, e.silence), h.first_ts, h.last_ts, now()
      from roster r
      left join heard h on h.device_id = r.device_id
      cross join lateral (
        select l.silence,
          round(date_part('epoch', r.until - r.since) * 1000000)::bigint / r.interval_us as expected,
          greatest((2 * round(date_part('epoch', l.silence) * 1000000)::bigint + r.interval_us) / (2 * r.interval_us) - 1, 0)
            as missed_last
        from (select r.until - coalesce(h.last_ts, r.since) as silence) l
      ) e
    $query$,
    v_table
  )
  using p_day::timestamptz, least((p_day + 1)::timestamptz, p_now), p_day, p_device_ids;
end
$$;

comment on function fleet.availability_of_day(date, timestamptz, bigint[]) is
  'Availability of devices on one UTC day, counted from its heartbeats; no row where they are not in the database any more. Behind fleet.roll_up() and fleet.device_availability(). Example: select * from fleet.availability_of_day(current_date, now(), array[42]);';
--! EndIncluded functions/availability_of_day.sql
--! Included functions/roll_up.sql
-- Each statement here sees what was committed before it began: a late arrival is deleted by the statement that counts it, or stays.
create or replace function fleet.roll_up(p_day date, p_now timestamptz default now(), p_late_only boolean default false)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_table regclass := fleet.find_day_table(p_day);
  v_writers text[];
  v_count integer;
begin
  if p_day is null or p_now is null or (p_day + 1)::timestamptz > p_now then
    raise exception using
      errcode = 'FL422',
      message = format('cannot roll up %s, which has not ended', coalesce(p_day::text, 'null')),
      hint = 'Days end at midnight UTC: select fleet.roll_up(current_date - 1);';
  end if;
  if v_table is null then
    raise exception using
      errcode = 'FL002',
      message = format('the heartbeats of %s are not in the database, and cannot be rolled up', p_day),
      hint = format('If the day is archived, bring it back first: select fleet.request_restore(%L);', p_day);
  end if;

  -- One at a time, so that who counted earlier does not write later.
  perform pg_advisory_xact_lock(hashtextextended('fleet.roll_up', 0));
  if p_late_only then
    if not exists (select from fleet.rolled_up_days r where r.day = p_day) then
      return 0;
    end if;
  else
    -- What was inserted before the day's midnight is no late arrival, and may not be committed yet. Looked at rather than
    -- locked out, so that no heartbeat waits.
    v_writers := array(
      select l.virtualtransaction
      from pg_locks l
      where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
    );
    for v_try in 0..100 loop
      exit when not exists (
        select from pg_locks l where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.virtualtransaction = any (v_writers)
      );
      if v_try = 100 then
        raise exception using
          errcode = 'FL003',
          message = format('lock timeout: a transaction has written heartbeats of %s and does not end', p_day),
          hint = 'Find it: select * from fleet.check_sessions(); the next night tries again.';
      end if;
      perform pg_sleep(0.02);
    end loop;
  end if;

  with late as (
    delete from fleet.late_arrivals l
    where l.day = p_day
    returning l.device_id
  ),
  counted as materialized (
    select c.*
    from fleet.availability_of_day(
      p_day, p_now, case when p_late_only then array(select distinct l.device_id from late l) end
    ) c
  ),
  written as (
    insert into fleet.device_availability_daily as a
    select c.*
    from counted c
    on conflict (device_id, day) do update
      set expected = excluded.expected,
        seen = excluded.seen,
        beats = excluded.beats,
        longest_gap = excluded.longest_gap,
        first_ts = excluded.first_ts,
        last_ts = excluded.last_ts,
        rolled_up_at = excluded.rolled_up_at
      where (a.expected, a.seen, a.beats, a.longest_gap, a.first_ts, a.last_ts)
        is distinct from (excluded.expected, excluded.seen, excluded.beats, excluded.longest_gap, excluded.first_ts, excluded.last_ts)
  ),
  gone as (
    delete from fleet.device_availability_daily a
    where a.day = p_day and not p_late_only
      and not exists (select from counted c where c.device_id = a.device_id)
  ),
  noted as (
    insert into fleet.rolled_up_days as r (day, devices)
    select p_day, count(*)
    from counted c
    where not p_late_only
    having not p_late_only
    on conflict (day) do update
      set devices = excluded.devices, rolled_up_at = excluded.rolled_up_at
  )
  select count(*) into v_count from counted;
  return v_count;
end
$$;

comment on function fleet.roll_up(date, timestamptz, boolean) is
  'Counts the availability of each device on one past UTC day, from its heartbeats, into fleet.device_availability_daily; returns the number of devices. With p_late_only those devices of a rolled-up day of which heartbeats came late. Run by fleet.nightly() and fleet.maintain(). Example: select fleet.roll_up(''2026-08-15'');';
--! EndIncluded functions/roll_up.sql
--! Included functions/rollup_plan.sql
create or replace function fleet.rollup_plan(p_now timestamptz default now())
returns table (day date, partition_name text, state text, action text, due_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with changes as materialized (
    select c.day, sum(c.devices) as devices
    from (
      select d.enrolled_at::date as day, 1 as devices
      from fleet.devices d
      where d.revoked_at is null or d.revoked_at > d.enrolled_at
      union all
      select (d.revoked_at - interval '1 microsecond')::date + 1, -1
      from fleet.devices d
      where d.revoked_at > d.enrolled_at
    ) c
    group by c.day
  ),
  late as materialized (
    select l.day, min(l.arrived_at) as since
    from fleet.late_arrivals l
    group by l.day
  )
  select d.day, p.partition_name, p.state,
    case when r.day is not null and r.devices = n.devices then 'rebuild' else 'roll_up' end,
    case when r.devices = n.devices or n.devices = 0 then l.since else (d.day + 1)::timestamptz end
  from fleet.hb_partitions p
  join pg_class t on t.oid = p.relid
  cross join fleet.settings s
  cross join lateral (
    select g.day::date as day
    from generate_series(p.range_start, least(p.range_end, p_now) - interval '1 day', interval '1 day') as g (day)
  ) d
  cross join lateral (select coalesce(sum(c.devices), 0) as devices from changes c where c.day <= d.day) n
  left join fleet.rolled_up_days r on r.day = d.day
  left join late l on l.day = d.day
  where
    -- Not yet, or before the roster of that day became another, as by devices that were enrolled with an earlier date.
    d.day >= p_now - greatest(s.rollups_keep, s.retention) and coalesce(r.devices, 0) <> n.devices
    -- Also of a day without a roster: heartbeats from before their device was enrolled are not to wait for ever.
    or l.day is not null
  order by d.day;
$$;

comment on function fleet.rollup_plan(timestamptz) is
  'The past days to be rolled up, and those to be rebuilt for late arrivals, and since when that is due. Example: select * from fleet.rollup_plan();';
--! EndIncluded functions/rollup_plan.sql
--! Included functions/finish_rollups.sql
-- Nobody can write to a retired partition: what is counted here is final.
create or replace function fleet.finish_rollups(p_partition text) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now timestamptz;
  v_due record;
  v_count integer := 0;
begin
  select greatest(now(), p.range_end) into v_now
  from fleet.hb_partitions p
  where p.partition_name = p_partition;
  for v_due in
    select r.day, r.action
    from fleet.rollup_plan(v_now) r
    where r.partition_name = p_partition
    order by r.day
  loop
    v_count := v_count + fleet.roll_up(v_due.day, v_now, v_due.action = 'rebuild');
  end loop;
  return v_count;
end
$$;

comment on function fleet.finish_rollups(text) is
  'Rolls up what of a retired partition is not yet, and works off its late arrivals; nothing when all is up to date. Called before it is exported, and before it is dropped.';
--! EndIncluded functions/finish_rollups.sql
--! Included functions/record_last_status.sql
-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500. In device_id order: concurrent batches of
-- the same devices deadlock otherwise.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The clock, not now(): what fleet.roll_up() does not wait for has to be written down.
  v_today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
begin
  with late as (
    insert into fleet.late_arrivals (device_id, day)
    select distinct n.device_id, (n.ts at time zone 'UTC')::date
    from new_rows n
    where n.ts < v_today
  )
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
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device, and notes in fleet.late_arrivals what is of a past day.';
--! EndIncluded functions/record_last_status.sql
--! Included triggers/device_heartbeats.sql
create or replace trigger device_heartbeats_record_last_status
  after insert on fleet.device_heartbeats
  referencing new table as new_rows
  for each statement execute function fleet.record_last_status();

comment on trigger device_heartbeats_record_last_status on fleet.device_heartbeats is
  'Keeps fleet.device_last_status and fleet.late_arrivals; sees only the rows really stored.';
--! EndIncluded triggers/device_heartbeats.sql
--! Included functions/record_frozen.sql
create or replace function fleet.record_frozen(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Takes seconds for a large day that the night has not rolled up. Before the row of the partition is locked, so that the
  -- lease is renewed meanwhile.
  perform fleet.finish_rollups(p_partition);
  perform fleet.check_lease(p_partition, p_worker);
  update fleet.hb_partitions
  set step = 'frozen'
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_frozen(text, text) is
  'Archiving, step frozen: VACUUM (FREEZE) is done, and the availability of its days is rolled up.';
--! EndIncluded functions/record_frozen.sql
--! Included functions/drop_partition.sql
create or replace function fleet.drop_partition(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_grace interval;
  v_rows bigint;
  v_since timestamptz := clock_timestamp();
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'dropped' then
    return true;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and is not dropped', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if v_partition.state <> 'archived' then
    raise exception using
      errcode = 'FL001',
      message = format('partition %s is %s and has no proven archive; it is not dropped', p_partition, v_partition.state),
      hint = format('Run select fleet.archive_partition(%L); and wait for state archived.', p_partition);
  end if;
  select archive_grace into strict v_grace from fleet.settings;
  if now() < v_partition.proven_at + v_grace then
    return false;
  end if;

  -- Done before the export, but for what was on its way when rollups were new.
  perform fleet.finish_rollups(p_partition);

  if v_partition.relid is not null and exists (select from pg_class where oid = v_partition.relid) then
    -- Only who may write may LOCK TABLE, and nobody may write here: this changes nothing and takes the same lock.
    execute format('alter table %s disable row level security', v_partition.relid::regclass);
    execute format('select count(*) from %s', v_partition.relid::regclass) into v_rows;
    if v_rows is distinct from v_partition.row_count then
      raise exception using
        errcode = 'FL010',
        message = format(
          'partition %s has %s rows and its archive %s; it is not dropped', p_partition, v_rows, v_partition.row_count
        ),
        hint = 'Someone wrote to it after the proof. Keep it and look: fleet.hold_partition().';
    end if;
    execute format('drop table %s', v_partition.relid::regclass);
  end if;

  update fleet.hb_partitions
  set state = 'dropped', relid = null, dropped_at = now(), lease_owner = null, lease_until = null, bytes_size = 0
  where partition_name = p_partition;
  perform fleet.count_up('hb_partition_dropped_total');
  perform fleet.record_event('partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(v_since));
  return true;
end
$$;

comment on function fleet.drop_partition(text) is
  'Drops a retired partition whose archive is proven; refuses any other. True when it is gone, false while archive_grace lasts. Example: select fleet.drop_partition(''device_heartbeats_p2026_08_15'');';
--! EndIncluded functions/drop_partition.sql
--! Included functions/device_availability.sql
create or replace function fleet.device_availability(
  p_from date,
  p_to date,
  p_device_id bigint default null,
  p_now timestamptz default now()
) returns table (
  device_id bigint, alias text, cohort text, expected bigint, seen bigint, availability_pct numeric, longest_gap interval,
  first_ts timestamptz, last_ts timestamptz, unknown_days integer
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set work_mem = '64MB'
as $$
#variable_conflict use_column
declare
  c_raw_days_most constant integer := 7;  -- 14 million heartbeats each take seconds, and a reader has 30
  v_today date := p_now::date;
  v_since timestamptz;
  v_until timestamptz;
  v_raw_days date[];
begin
  if p_now is null or p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_from > p_to then
    raise exception using
      errcode = 'FL422',
      message = format('there is no availability from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give the first and the last day, in order: select * from fleet.device_availability(current_date - 30, current_date - 1);';
  end if;
  v_since := p_from::timestamptz;
  v_until := least((p_to + 1)::timestamptz, p_now);

  v_raw_days := array(
    select g.day::date
    from fleet.hb_partitions p
    join pg_class t on t.oid = p.relid
    cross join lateral generate_series(
      greatest(p.range_start, v_since), least(p.range_end, v_until) - interval '1 microsecond', interval '1 day'
    ) as g (day)
    where g.day >= (select min(d.enrolled_at)::date from fleet.devices d)
      and (g.day::date = v_today or not exists (select from fleet.rolled_up_days r where r.day = g.day::date))
  );
  if cardinality(v_raw_days) > c_raw_days_most and p_device_id is null then
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s days from %s to %s are not rolled up yet, and all their heartbeats would be read; at most %s at a time',
        cardinality(v_raw_days), p_from, p_to, c_raw_days_most
      ),
      hint = 'The night rolls them up; do it now by call fleet.nightly(); or ask for fewer days, or for one device.';
  end if;

  return query
    with roster as materialized (
      select d.device_id, d.alias, d.cohort, greatest(d.enrolled_at, v_since) as since, least(d.revoked_at, v_until) as until
      from fleet.devices d
      where (p_device_id is null or d.device_id = p_device_id)
        and greatest(d.enrolled_at, v_since) < least(d.revoked_at, v_until)
    ),
    late as materialized (
      select distinct l.device_id, l.day
      from fleet.late_arrivals l
      where l.day between p_from and p_to and l.day <> all (v_raw_days)
        and (p_device_id is null or l.device_id = p_device_id)
    ),
    days as (
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from fleet.device_availability_daily a
      where a.day between p_from and least(p_to, v_today - 1) and a.day <> all (v_raw_days)
        and (p_device_id is null or a.device_id = p_device_id)
        and not exists (select from late l where l.device_id = a.device_id and l.day = a.day)
      union all
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from unnest(v_raw_days) as r (day)
      cross join lateral fleet.availability_of_day(
        r.day, p_now, case when p_device_id is not null then array[p_device_id] end
      ) a
      union all
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from (select l.day, array_agg(l.device_id) as device_ids from late l group by l.day) l
      cross join lateral fleet.availability_of_day(l.day, p_now, l.device_ids) a
    ),
    runs as (  -- of known days without an unknown one between them
      select d.*, d.day - (row_number() over (partition by d.device_id order by d.day))::integer as run
      from days d
    ),
    joined as (
      select u.*, r.alias, r.cohort, r.since, r.until,
        -- A silence does not end at midnight: from the last heartbeat of the days before to the first of this one.
        coalesce(u.first_ts, least((u.day + 1)::timestamptz, r.until))
          - coalesce(max(u.last_ts) over w, greatest(coalesce(min(u.day) over w, u.day)::timestamptz, r.since)) as silence
      from runs u
      join roster r using (device_id)
      window w as (partition by u.device_id, u.run order by u.day rows between unbounded preceding and 1 preceding)
    ),
    known as (
      select j.device_id, sum(j.expected)::bigint as expected, sum(j.seen)::bigint as seen,
        max(greatest(j.longest_gap, j.silence)) as longest_gap, min(j.first_ts) as first_ts, max(j.last_ts) as last_ts,
        count(*)::integer as days
      from joined j
      group by j.device_id
    )
    select r.device_id, r.alias, r.cohort, coalesce(k.expected, 0), coalesce(k.seen, 0),
      round(100.0 * k.seen / nullif(k.expected, 0), 2), k.longest_gap, k.first_ts, k.last_ts,
      (r.until - interval '1 microsecond')::date - r.since::date + 1 - coalesce(k.days, 0)
    from roster r
    left join known k using (device_id)
    order by r.device_id;
end
$$;

comment on function fleet.device_availability(date, date, bigint, timestamptz) is
  'Availability of each device (or one) from the first to the last UTC day, both included: heartbeats expected and seen, in percent (null when none was expected), the longest silence. From the rollups; today, days not rolled up yet and late arrivals from the heartbeats. Days of which neither is there any more are not counted and given as unknown_days. Example: select alias, availability_pct, longest_gap from fleet.device_availability(current_date - 30, current_date - 1) order by availability_pct;';
--! EndIncluded functions/device_availability.sql
--! Included views/device_availability.sql
create or replace view fleet.device_availability as
select a.day, a.device_id, d.alias, d.cohort, a.heartbeat_interval, a.expected, a.seen,
  round(100.0 * a.seen / nullif(a.expected, 0), 2) as availability_pct,
  a.beats, a.longest_gap, a.first_ts, a.last_ts, a.rolled_up_at
from fleet.device_availability_daily a
join fleet.devices d using (device_id);

comment on view fleet.device_availability is
  'Each device on each past UTC day on which it was expected, as rolled up by the night: heartbeats expected and seen, and the longest silence. Name a day or a range of days. For today, or a sum over days: fleet.device_availability(from, to). Example: select alias, availability_pct, longest_gap from fleet.device_availability where day = current_date - 1 order by availability_pct;';
--! EndIncluded views/device_availability.sql
--! Included functions/note_storage.sql
create or replace function fleet.note_storage(p_now timestamptz default now()) returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  insert into fleet.storage_daily as d (
    day, rows_online, bytes_online, bytes_archived, bytes_pushed, database_bytes, noted_at
  )
  select p_now::date, t.rows_online, t.bytes_online, t.bytes_archived,
    coalesce((select c.total from fleet.counters c where c.counter = 'archive_bytes_pushed_total'), 0),
    pg_database_size(current_database()), p_now
  from (
    select
      -- Counted once the day is over; of today's there is what the last ANALYZE found.
      coalesce(sum(coalesce(p.row_count, greatest(c.reltuples, 0)::bigint)) filter (where c.oid is not null), 0) as rows_online,
      coalesce(sum(pg_total_relation_size(c.oid)), 0) as bytes_online,
      coalesce(sum(p.archive_bytes) filter (where p.proven_at is not null), 0) as bytes_archived
    from fleet.hb_partitions p
    left join pg_class c on c.oid = p.relid
  ) t
  on conflict (day) do update
    set rows_online = excluded.rows_online,
      bytes_online = excluded.bytes_online,
      bytes_archived = excluded.bytes_archived,
      bytes_pushed = excluded.bytes_pushed,
      database_bytes = excluded.database_bytes,
      noted_at = excluded.noted_at
  returning d.bytes_online;
$$;

comment on function fleet.note_storage(timestamptz) is
  'Keeps today''s sizes in fleet.storage_daily; returns the bytes of the partitions online. Run by fleet.nightly().';
--! EndIncluded functions/note_storage.sql
--! Included views/storage_history.sql
create or replace view fleet.storage_history as
select d.day, d.rows_online, d.bytes_online, d.bytes_archived, d.bytes_pushed, d.database_bytes,
  d.rows_online - lag(d.rows_online) over w as rows_added,
  d.bytes_online - lag(d.bytes_online) over w as bytes_added,
  d.bytes_pushed - lag(d.bytes_pushed) over w as bytes_pushed_since,
  d.noted_at
from fleet.storage_daily d
window w as (order by d.day)
order by d.day desc;

comment on view fleet.storage_history is
  'Rows and bytes online and in the archive, and the size of the database, as each night found them, newest first; the columns _added and _since are the difference to the row before. Example: select day, database_bytes, bytes_pushed_since from fleet.storage_history where day > current_date - 30;';
--! EndIncluded views/storage_history.sql
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
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches + v_rollups;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Removes quarantined heartbeats, events, commands and rollups that are past their time; returns how many. Run by fleet.nightly().';
--! EndIncluded functions/prune.sql
--! Included functions/do_step.sql
create or replace function fleet.do_step(p_step text, p_partition text, p_now timestamptz, p_day date default null)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  case p_step
    when 'premake' then
      v_count := (select count(*) from fleet.premake(p_now));
    when 'refresh_sizes' then
      v_count := fleet.refresh_sizes(p_now);
    when 'set_temperatures' then
      v_count := fleet.set_temperatures(p_now);
    when 'schedule_vacuum' then
      v_count := fleet.schedule_vacuum();
    when 'roll_up' then
      v_count := fleet.roll_up(p_day, p_now);
    when 'rebuild' then
      v_count := fleet.roll_up(p_day, p_now, p_late_only => true);
    when 'retire' then
      v_count := fleet.retire_partition(p_partition, p_now);
    when 'prune' then
      v_count := fleet.prune(p_now);
    when 'note_storage' then
      v_count := fleet.note_storage(p_now);
    when 'retry_failed_archives' then
      v_count := fleet.retry_failed_archives();
    when 'wake_archiver' then
      v_count := fleet.wake_archiver('nightly')::integer;
  end case;
  return v_count;
end
$$;

comment on function fleet.do_step(text, text, timestamptz, date) is
  'One step of maintenance by name; returns how many partitions or rows it concerned.';
--! EndIncluded functions/do_step.sql
--! Included procedures/run_step.sql
-- A procedure that commits can have neither SET nor SECURITY DEFINER: what needs them is in the functions it calls.
create or replace procedure fleet.run_step(
  p_run_id bigint,
  p_step text,
  p_partition text,
  p_now timestamptz,
  inout p_failed integer,
  p_day date default null
)
language plpgsql
as $$
declare
  v_since timestamptz := pg_catalog.clock_timestamp();
  v_count bigint;
  v_error text;
begin
  for v_attempt in 1..5 loop
    v_error := null;
    begin
      perform pg_catalog.set_config('fleet.run_id', p_run_id::text, true);
      v_count := fleet.do_step(p_step, p_partition, p_now, p_day);
    exception when others then
      v_error := sqlerrm;
    end;
    commit;
    -- pg_partman reports a lock timeout under another error code, so its words decide. A long query over the whole parent
    -- is the usual cause: wait a moment, in no transaction, and try again.
    exit when v_error is null or v_error not like '%lock timeout%';
    perform pg_catalog.pg_sleep(0.2 * v_attempt);
    commit;
  end loop;

  if v_error is not null then
    p_failed := p_failed + 1;
    if p_step = 'premake' then
      perform fleet.count_up('partition_create_failures_total');
    end if;
  end if;
  perform fleet.record_event(
    'maintenance.' || p_step, p_partition, v_count, fleet.elapsed_ms(v_since),
    nullif(pg_catalog.concat_ws(': ', p_day, v_error), ''), v_error is null, p_run_id
  );
  commit;
end
$$;

comment on procedure fleet.run_step(bigint, text, text, timestamptz, integer, date) is
  'One step of maintenance in transactions of its own: retried while locks are busy, recorded in fleet.events, and never the end of the others.';
--! EndIncluded procedures/run_step.sql
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
  v_rollup record;
begin
  p_run_id := fleet.begin_run('nightly');
  commit;
  -- Premake comes first and alone: ingest depends on it, on nothing below.
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'refresh_sizes', null, p_now, v_failed);
  -- Days of which the heartbeats are going to leave come first.
  for v_rollup in
    select r.day, r.partition_name
    from fleet.rollup_plan(p_now) r
    where r.action = 'roll_up' and r.state in ('active', 'restored')
    order by r.day
  loop
    call fleet.run_step(p_run_id, 'roll_up', v_rollup.partition_name, p_now, v_failed, v_rollup.day);
  end loop;
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
  call fleet.run_step(p_run_id, 'note_storage', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'retry_failed_archives', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'wake_archiver', null, p_now, v_failed);
  perform fleet.end_run(p_run_id, 'nightly', v_failed);
end
$$;

comment on procedure fleet.nightly(bigint, interval, timestamptz) is
  'The night''s work, each step in its own transaction: premake, count, roll up availability, retire what is past the retention, set autovacuum by age, prune, wake the archiver. Answers its run_id for fleet.run_steps(). See first: select * from fleet.nightly_plan(). Example: call fleet.nightly();';
--! EndIncluded procedures/nightly.sql
--! Included procedures/maintain.sql
create or replace procedure fleet.maintain(inout p_run_id bigint default null, p_now timestamptz default now())
language plpgsql
as $$
declare
  v_failed integer := 0;
  v_nightly bigint;
  v_rollup record;
begin
  p_run_id := fleet.begin_run('maintain');
  commit;
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  for v_rollup in
    select r.day, r.partition_name
    from fleet.rollup_plan(p_now) r
    where r.action = 'rebuild' and r.state in ('active', 'restored')
    order by r.day
  loop
    call fleet.run_step(p_run_id, 'rebuild', v_rollup.partition_name, p_now, v_failed, v_rollup.day);
  end loop;
  perform fleet.end_run(p_run_id, 'maintain', v_failed);
  commit;
  -- Postgres or pg_cron was down at three.
  if fleet.is_night_missed(p_now) then
    call fleet.nightly(v_nightly, null, p_now);
  end if;
end
$$;

comment on procedure fleet.maintain(bigint, timestamptz) is
  'Makes the partitions ahead, counts the availability of devices with late heartbeats anew, and makes up for a night that was missed. Run hourly by pg_cron; safe at any time. Example: call fleet.maintain();';
--! EndIncluded procedures/maintain.sql
--! Included functions/nightly_plan.sql
create or replace function fleet.nightly_plan(p_retention interval default null, p_now timestamptz default now())
returns table (step text, partition_name text, detail text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  (
    select 'premake', null::text, format('make the partition of %s', d.day::date)
    from fleet.settings s
    cross join generate_series(p_now::date::timestamptz, p_now::date + s.premake_days * interval '1 day', interval '1 day') as d (day)
    where not exists (
      select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day
    )
    order by d.day
  )
  union all
  (
    select 'roll_up', r.partition_name, format('roll up %s', r.day)
    from fleet.rollup_plan(p_now) r
    where r.action = 'roll_up' and r.state in ('active', 'restored')
    order by r.day
  )
  union all
  select 'retire', r.partition_name, r.reason
  from fleet.retention_plan(p_retention, p_now) r
  where r.action = 'retire'
  union all
  select 'hold', r.partition_name, r.reason
  from fleet.retention_plan(p_retention, p_now) r
  where r.action = 'hold'
  union all
  (
    select 'archive', p.partition_name, format('state %s%s', p.state, ': ' || p.last_error)
    from fleet.hb_partitions p
    where p.state in ('detached', 'archiving', 'archive_failed', 'archived')
    order by p.range_start
  );
$$;

comment on function fleet.nightly_plan(interval, timestamptz) is
  'The dry run of fleet.nightly(): what it would make, roll up, retire and leave to the archiver; changes nothing. Example: select * from fleet.nightly_plan(''60 days'');';
--! EndIncluded functions/nightly_plan.sql
--! Included functions/check_partitions.sql
create or replace function fleet.check_partitions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_today date := p_now::date;
  v_ahead integer;
  v_names text;
  v_commands text;
  v_attach text;
begin
  select * into strict v_settings from fleet.settings;
  -- Detached by hand: made anew they would not be, attached they are as before.
  select e'-- as fleet_owner\n' || string_agg(
    format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L);', p.relid::regclass, p.range_start, p.range_end
    ),
    e'\n' order by p.range_start
  )
  into v_attach
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where p.state in ('active', 'restored') and not exists (select from pg_inherits i where i.inhrelid = p.relid);

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= p_now and a.range_end > p_now) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('no partition for %s: heartbeats are quarantined', v_today);
    remedy := coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today, v_today + v_settings.premake_days));
  end if;
  return next;

  check_name := 'partitions_ahead';
  select coalesce(min(d.day) - v_today - 1, 90) into v_ahead
  from (select v_today + n as day from generate_series(1, 90) as n) d
  where not exists (select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day);
  detail := format('%s days ahead, %s wanted', v_ahead, v_settings.premake_days);
  -- Between midnight and the hourly run there is one less.
  status := case when v_ahead >= greatest(v_settings.premake_days - 1, 1) then 'ok' when v_ahead >= 3 then 'warn' else 'fail' end;
  remedy := case
    when status <> 'ok' then
      coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today + 1, v_today + v_settings.premake_days))
  end;
  return next;

  check_name := 'partition_obstacles';
  select string_agg(c.relname, ', ' order by c.relname),
    string_agg(format('alter table fleet.%I rename to %I;', c.relname, left('stray_' || c.relname, 63)), e'\n' order by c.relname)
  into v_names, v_commands
  from pg_class c
  where c.relnamespace = 'fleet'::regnamespace
    and c.relkind not in ('i', 'I')
    and c.relname like 'device\_heartbeats\_p%'
    and not exists (select from pg_inherits i where i.inhrelid = c.oid)
    and not exists (select from fleet.hb_partitions p where p.relid = c.oid);
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('in the way of a partition of that name: ' || v_names, 'no name of a partition is taken');
  remedy := format(e'-- as superuser\n%s\ncall fleet.maintain();', v_commands);
  remedy := case when v_names is not null then remedy end;
  return next;

  check_name := 'partition_catalog';
  select string_agg(format('%s is %s', k.partition_name, k.fault), ', ' order by k.partition_name) into v_names
  from (
    select a.partition_name, 'attached, and not known to fleet.hb_partitions' as fault
    from fleet.attached_partitions() a
    where not exists (
      select from fleet.hb_partitions p
      where p.relid = a.relid and p.state in ('active', 'restored') and p.range_start = a.range_start and p.range_end = a.range_end
    )
    union all
    select p.partition_name, format('%s in fleet.hb_partitions, and not attached', p.state)
    from fleet.hb_partitions p
    join pg_class c on c.oid = p.relid
    where p.state in ('active', 'restored')
      and not exists (select from fleet.attached_partitions() a where a.relid = p.relid)
  ) k;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'fleet.hb_partitions says what the catalog says');
  remedy := case when v_names is not null then coalesce(v_attach, 'select fleet.sync_partitions();') end;
  return next;

  check_name := 'partition_gaps';
  select string_agg(format('%s to %s', g.gap_start::date, g.gap_end::date), ', ' order by g.gap_start),
    string_agg(
      format('select fleet.create_partitions(%L, %L);', g.gap_start::date, g.gap_end::date - 1), e'\n' order by g.gap_start
    )
  into v_names, v_commands
  from (
    select a.range_end as gap_start, lead(a.range_start) over (order by a.range_start) as gap_end
    from fleet.attached_partitions() a
  ) g
  where g.gap_end > g.gap_start
    -- Between a held or restored day and the rest, the days are in the archive.
    and g.gap_end > p_now - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'no gap between partitions');
  remedy := v_commands;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start),
    string_agg(
      case
        when p.state in ('active', 'restored') then
          format('select fleet.create_partitions(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date)
        when p.state = 'archived' then format('select fleet.drop_partition(%L);', p.partition_name)
        else format('-- %s: its rows are in a backup of Postgres only', p.partition_name)
      end,
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  left join pg_class c on c.oid = p.relid
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone, undropped: ' || v_names, 'every partition that is not dropped has its table');
  remedy := e'-- makes the days anew, empty; what they held: RUNBOOK.md, "A table is gone"\n' || v_commands;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start),
    string_agg(format('alter table %s rename to %I;', c.oid::regclass, p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has the name it was made with');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it holds a row', 'there is none');
  remedy := case
    when v_names is not null then format(e'-- as fleet_owner\nalter table fleet.device_heartbeats detach partition %s;', v_names)
  end;
  return next;

  check_name := 'partition_indexes';
  with fault as (
    select a.partition_name, a.range_start,
      not coalesce(bool_or(i.indisunique and i.indisvalid), false) as lacks_key,
      not coalesce(bool_or(i.indisvalid and not i.indisunique and pg_get_indexdef(i.indexrelid) like '%(device\_id, ts DESC)'), false)
        as lacks_newest,
      string_agg(format('drop index concurrently %s;', i.indexrelid::regclass), e'\n') filter (where not i.indisvalid) as leftovers
    from fleet.attached_partitions() a
    left join pg_index i on i.indrelid = a.relid
    group by a.partition_name, a.range_start
  )
  select string_agg(f.partition_name, ', ' order by f.range_start),
    string_agg(
      concat_ws(
        e'\n',
        f.leftovers,
        -- What the key would have kept out meanwhile stands in its way now.
        case when f.lacks_key then format(
          e'delete from fleet.%1$I a using fleet.%1$I b where a.device_id = b.device_id '
          'and date_bin(''10 seconds'', a.ts, ''2000-01-01Z'') = date_bin(''10 seconds'', b.ts, ''2000-01-01Z'') '
          'and (a.received_at, a.ctid) > (b.received_at, b.ctid);'
          '\ncreate unique index concurrently on fleet.%1$I %2$s;',
          f.partition_name,
          regexp_replace(pg_get_indexdef('fleet.device_heartbeats_template_dedupe_key'::regclass), '^.* USING btree ', '')
        ) end,
        case when f.lacks_newest then format(
          e'create index if not exists device_heartbeats_device_id_ts_idx on only fleet.device_heartbeats (device_id, ts desc);'
          '\ncreate index concurrently if not exists %2$I on fleet.%1$I (device_id, ts desc);'
          '\nalter index fleet.device_heartbeats_device_id_ts_idx attach partition fleet.%2$I;',
          f.partition_name, f.partition_name || '_device_id_ts_idx'
        ) end
      ),
      e'\n' order by f.range_start
    )
  into v_names, v_commands
  from fault f
  where f.lacks_key or f.lacks_newest;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('an index is missing on ' || v_names, 'every partition has both indexes');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan(null, p_now) r
  where r.action = 'retire' and r.range_end < p_now - v_settings.retention - interval '2 days';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'nothing overdue');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'rollups';
  select string_agg(
      format('%s since %s', r.day, r.due_at),
      ', ' order by r.day
    ),
    string_agg(distinct case r.action when 'roll_up' then 'call fleet.nightly();' else 'call fleet.maintain();' end, e'\n')
  into v_names, v_commands
  from fleet.rollup_plan(p_now) r
  where r.state in ('active', 'restored')
    and r.due_at < p_now - case r.action when 'roll_up' then interval '2 days' else interval '3 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('availability not counted: ' || v_names, 'past days are rolled up, late heartbeats included');
  remedy := v_commands;
  return next;

  check_name := 'guard';
  status := 'ok'; detail := 'DROP of an unproven partition is refused'; remedy := null;
  if not exists (select from pg_event_trigger where evtname = 'fleet_guard_drop' and evtenabled = 'A') then
    status := 'warn'; detail := 'the event trigger fleet_guard_drop is missing or not ENABLE ALWAYS';
    remedy := concat_ws(
      e'\n', '-- as superuser',
      case
        when not exists (select from pg_event_trigger where evtname = 'fleet_guard_drop') then
          'create event trigger fleet_guard_drop on sql_drop execute function fleet_guard.refuse_unproven_drop();'
      end,
      'alter event trigger fleet_guard_drop enable always;'
    );
  end if;
  return next;
end
$$;

comment on function fleet.check_partitions(timestamptz) is
  'What fleet.check() says of partitions: today''s, those ahead, gaps, names, indexes, retention, rollups and the guard.';
--! EndIncluded functions/check_partitions.sql
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
  fleet.metric_values()
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
  fleet.fleet_silence, fleet.missed_beats, fleet.silence_samples, fleet.adoption_progress, fleet.device_availability
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
