--! Previous: sha1:0867127b41eac0fd755686164d5041f438ab32a9
--! Hash: sha1:a4720c707367c6b2d166429c0c78814a5e2baf79
--! Message: silent cohorts, missed beats

-- Enter migration here
alter table fleet.settings
  add column silence_window interval not null default '30 minutes',
  add column silence_share double precision not null default 0.1,
  add column silence_ratio double precision not null default 2,
  add column silence_min_devices integer not null default 3,
  add column ingest_gap interval not null default '3 minutes',
  add constraint settings_silence_window_range check (silence_window >= '10 minutes' and silence_window <= '1 day'),
  add constraint settings_silence_share_range check (silence_share > 0 and silence_share <= 1),
  add constraint settings_silence_ratio_range check (silence_ratio >= 1 and silence_ratio <= 100),
  add constraint settings_silence_min_devices_range check (silence_min_devices between 1 and 1000000),
  add constraint settings_ingest_gap_range check (ingest_gap >= '2 minutes' and ingest_gap <= '1 day');
comment on column fleet.settings.silence_window is 'Who fell silent within this long before now has gone quiet, in fleet.fleet_silence. As long after a gap of ingest nothing is judged.';
comment on column fleet.settings.silence_share is 'A cohort is silent when at least this share of its active devices has gone quiet.';
comment on column fleet.settings.silence_ratio is 'And when that is at least so many times the usual share at this time of day.';
comment on column fleet.settings.silence_min_devices is 'And when at least so many devices have gone quiet; smaller cohorts are not judged.';
comment on column fleet.settings.ingest_gap is 'When nothing was received from anybody for longer than this (and 20 heartbeats were due), ingest is down, and no cohort is called silent.';

create table fleet.silence_watch (
  is_only_row boolean not null default true,
  looked_at timestamptz not null default '-infinity',
  newest_received_at timestamptz,
  gap_from timestamptz,
  gap_to timestamptz,
  sampled_at timestamptz not null default '-infinity',
  constraint silence_watch_pkey primary key (is_only_row),
  constraint silence_watch_only_row check (is_only_row)
);
comment on table fleet.silence_watch is 'Whether heartbeats come in at all, looked at each minute; one row. Kept by fleet.watch_silence().';
comment on column fleet.silence_watch.is_only_row is 'Always true: there is one row.';
comment on column fleet.silence_watch.looked_at is 'When it was looked at last.';
comment on column fleet.silence_watch.newest_received_at is 'The newest received_at of any device then.';
comment on column fleet.silence_watch.gap_from is 'The last heartbeat before the latest time in which none came in, or nobody looked.';
comment on column fleet.silence_watch.gap_to is 'When it was seen that they come in again; null while they do not.';
comment on column fleet.silence_watch.sampled_at is 'When fleet.silence_samples were taken last.';
insert into fleet.silence_watch default values;

create table fleet.silence_samples (
  cohort text not null,
  sampled_at timestamptz not null,
  active integer not null,
  gone_quiet integer not null,
  constraint silence_samples_pkey primary key (cohort, sampled_at),
  constraint silence_samples_active_range check (active > 0 and gone_quiet between 0 and active)
);
comment on table fleet.silence_samples is 'fleet.fleet_silence each 10 minutes, of the last 8 days, without what was muted because of ingest. From it comes what is usual.';
comment on column fleet.silence_samples.cohort is 'fleet.devices.cohort, or (all).';
comment on column fleet.silence_samples.sampled_at is 'When.';
comment on column fleet.silence_samples.active is 'Devices that were heard of when the window began, or in it.';
comment on column fleet.silence_samples.gone_quiet is 'Those of them that fell silent in the window, and still were.';

create table fleet.silence_usual (
  cohort text not null,
  usual_share double precision,
  samples integer not null,
  days integer not null,
  computed_at timestamptz not null,
  constraint silence_usual_pkey primary key (cohort)
);
comment on table fleet.silence_usual is 'What share of each cohort usually goes quiet at this time of day, made anew from fleet.silence_samples each 10 minutes.';
comment on column fleet.silence_usual.cohort is 'fleet.devices.cohort, or (all).';
comment on column fleet.silence_usual.usual_share is
  'The second highest of the daily peaks within 90 minutes of this time of day, of the last 7 days; with fewer than 3 such days the highest of all samples.';
comment on column fleet.silence_usual.samples is 'How many samples there are of the cohort.';
comment on column fleet.silence_usual.days is 'How many of the last 7 days have samples around this time of day.';
comment on column fleet.silence_usual.computed_at is 'When it was computed.';

--! Included functions/beats_missed.sql
create or replace function fleet.beats_missed(p_silence interval, p_expected interval) returns bigint
language sql
immutable
parallel safe
-- round(silence / expected) - 1, half up, in whole microseconds.
return greatest(
  (2 * (extract(epoch from p_silence) * 1000000)::bigint + (extract(epoch from p_expected) * 1000000)::bigint)
    / (2 * (extract(epoch from p_expected) * 1000000)::bigint) - 1,
  0
);

comment on function fleet.beats_missed(interval, interval) is
  'How many heartbeats are missing in a silence of this length, at this interval: one is missing once it is more than half an interval overdue, so that jitter costs nothing. Example: select fleet.beats_missed(''10 min'', ''60 s'');';
--! EndIncluded functions/beats_missed.sql
--! Included functions/is_ingest_down.sql
-- Who was heard of in the day before counts: devices that are off for good would make any pause look long.
create or replace function fleet.is_ingest_down(p_newest timestamptz, p_now timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select case
    when p_now - p_newest > (select s.ingest_gap from fleet.settings s) then (
      select coalesce(sum(
        extract(epoch from p_now - p_newest)
        / extract(epoch from fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now))
      ), 0) >= 20
      from fleet.devices d
      join fleet.device_last_status ls using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      where d.revoked_at is null and ls.last_received_at > p_newest - interval '1 day'
    )
    else false
  end;
$$;

comment on function fleet.is_ingest_down(timestamptz, timestamptz) is
  'Whether nothing came in from anybody for so long that the fault must be ours: longer than settings.ingest_gap, and 20 heartbeats were due in that time. Takes the newest received_at, and the time.';
--! EndIncluded functions/is_ingest_down.sql
--! Included functions/silence_at.sql
create or replace function fleet.silence_at(p_now timestamptz)
returns table (
  cohort text, devices bigint, active bigint, gone_quiet bigint, share double precision, usual_share double precision,
  ratio double precision, is_alarming boolean, is_muted boolean, muted_reason text, window_start timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with ingest as materialized (
    select
      case
        when fleet.is_ingest_down((select max(l.last_received_at) from fleet.device_last_status l), p_now) then 'ingest_down'
        when p_now < w.gap_to + s.silence_window or w.gap_from is not null and w.gap_to is null
          or pg_postmaster_start_time() > w.looked_at then 'ingest_resumed'
        when w.looked_at < p_now - s.ingest_gap then 'unwatched'
      end as muted_reason,
      -- Who fell silent while nothing could be heard has not been looked at yet: for one more window the gap belongs to it.
      least(case when p_now < w.gap_to + 2 * s.silence_window then w.gap_from end, p_now - s.silence_window) as window_start
    from fleet.settings s
    cross join fleet.silence_watch w
  ),
  -- By how much each is overdue: worked out once, hence OFFSET 0.
  heard as (
    select d.cohort,
      -- A heartbeat that is refused for its time is heard all the same.
      p_now - case when ls.status = 'clock_skewed' then ls.last_received_at else ls.last_ts end - fleet.late_after(
        fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now)
      ) as overdue
    from fleet.devices d
    left join fleet.device_last_status ls using (device_id)
    left join fleet.cohorts c on c.cohort = d.cohort
    where d.revoked_at is null
    offset 0
  ),
  counted as (
    select h.cohort, count(*) as devices,
      count(*) filter (where h.overdue <= (select p_now - i.window_start from ingest i)) as active,
      count(*) filter (
        where h.overdue > interval '0' and h.overdue <= (select p_now - i.window_start from ingest i)
      ) as gone_quiet
    from heard h
    group by h.cohort
  ),
  summed as (
    select coalesce(k.cohort, '(all)') as cohort, grouping(k.cohort) as is_all,
      coalesce(sum(k.devices), 0)::bigint as devices, coalesce(sum(k.active), 0)::bigint as active,
      coalesce(sum(k.gone_quiet), 0)::bigint as gone_quiet
    from counted k
    group by grouping sets ((k.cohort), ())
  )
  select m.cohort, m.devices, m.active, m.gone_quiet, r.share, u.usual_share, r.share / nullif(u.usual_share, 0),
    r.muted_reason is null and m.gone_quiet >= s.silence_min_devices and r.share >= s.silence_share
      and r.share >= s.silence_ratio * u.usual_share,
    r.muted_reason is not null, r.muted_reason, i.window_start
  from summed m
  cross join ingest i
  cross join fleet.settings s
  left join fleet.silence_usual u on u.cohort = m.cohort
  cross join lateral (
    select m.gone_quiet / nullif(m.active, 0)::double precision as share,
      case
        when i.muted_reason is not null then i.muted_reason
        when m.active < s.silence_min_devices then 'few_devices'
        -- A day of samples: who has not seen a night knows nothing of nights.
        when u.usual_share is null or u.samples < 144 then 'few_samples'
      end as muted_reason
  ) r
  order by m.is_all desc, m.cohort;
$$;

comment on function fleet.silence_at(timestamptz) is
  'fleet.fleet_silence at a given time, by what is known now. Defined in docs/decisions/0017. Example: select * from fleet.silence_at(now());';
--! EndIncluded functions/silence_at.sql
--! Included functions/watch_silence.sql
create or replace function fleet.watch_silence(p_now timestamptz default now()) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  c_every constant interval := interval '10 minutes';
  c_keep constant interval := interval '8 days';
  c_around constant interval := interval '90 minutes';
  v_watch fleet.silence_watch;
  v_settings fleet.settings;
  v_newest timestamptz;
  v_is_remembered boolean;
begin
  select * into strict v_settings from fleet.settings;
  select * into strict v_watch from fleet.silence_watch for update;
  select max(ls.last_received_at) into v_newest from fleet.device_last_status ls;

  -- A gap whose devices are still to be looked at grows, a new one does not take its place.
  v_is_remembered := v_watch.gap_to is null and v_watch.gap_from is not null
    or p_now < v_watch.gap_to + 2 * v_settings.silence_window;
  if fleet.is_ingest_down(v_newest, p_now) then
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else v_newest end;
    v_watch.gap_to := null;
  elsif v_watch.gap_from is not null and v_watch.gap_to is null then
    v_watch.gap_to := p_now;
  elsif v_watch.looked_at < p_now - v_settings.ingest_gap or v_watch.looked_at < pg_postmaster_start_time() then
    -- Nobody can say what came in since the last look.
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else coalesce(v_watch.newest_received_at, p_now) end;
    v_watch.gap_to := p_now;
  end if;
  update fleet.silence_watch
  set looked_at = p_now, newest_received_at = v_newest, gap_from = v_watch.gap_from, gap_to = v_watch.gap_to;

  if date_bin(c_every, p_now, '2000-01-01Z') <= v_watch.sampled_at then
    return;
  end if;
  -- What was said under a mute, or over a longer window, is not to become usual.
  insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
  select a.cohort, p_now, a.active, a.gone_quiet
  from fleet.silence_at(p_now) a
  where a.active > 0 and coalesce(a.muted_reason in ('few_devices', 'few_samples'), true)
    and a.window_start = p_now - v_settings.silence_window
  on conflict do nothing;
  delete from fleet.silence_samples s
  where s.sampled_at < p_now - c_keep;

  delete from fleet.silence_usual;
  insert into fleet.silence_usual (cohort, usual_share, samples, days, computed_at)
  select a.cohort, case when k.days >= 3 then k.peaks[2] else a.highest end, a.samples, coalesce(k.days, 0), p_now
  from (
    select s.cohort, count(*) as samples,
      -- What goes on now does not count as usual.
      max(s.gone_quiet / s.active::double precision)
        filter (where s.sampled_at < p_now - greatest(c_around, 2 * v_settings.silence_window)) as highest
    from fleet.silence_samples s
    group by s.cohort
  ) a
  left join (
    select p.cohort, count(*) as days, array_agg(p.peak order by p.peak desc) as peaks
    from (
      select s.cohort, d.days_ago, max(s.gone_quiet / s.active::double precision) as peak
      from generate_series(1, 7) as d (days_ago)
      join fleet.silence_samples s
        on s.sampled_at between p_now - d.days_ago * interval '1 day' - c_around and p_now - d.days_ago * interval '1 day' + c_around
      group by s.cohort, d.days_ago
    ) p
    group by p.cohort
  ) k using (cohort);

  update fleet.silence_watch
  set sampled_at = p_now;
end
$$;

comment on function fleet.watch_silence(timestamptz) is
  'Looks whether heartbeats come in, and each 10 minutes takes a sample of fleet.fleet_silence, from which it says what is usual. Called each minute by fleet.mark_silent(). Example: select fleet.watch_silence();';
--! EndIncluded functions/watch_silence.sql
--! Included functions/check_silence.sql
create or replace function fleet.check_silence(p_now timestamptz default now())
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
  v_newest timestamptz;
  v_names text;
  v_commands text;
  v_is_fleet boolean;
  v_muted text;
begin
  check_name := 'heartbeats';
  select max(ls.last_received_at) into v_newest from fleet.device_last_status ls;
  status := 'ok'; detail := coalesce('the last one came ' || date_trunc('second', p_now - v_newest) || ' ago', 'none yet'); remedy := null;
  if fleet.is_ingest_down(v_newest, p_now) then
    status := 'fail'; detail := format('none from any device for %s: the servers, what stands before them, or the network', date_trunc('second', p_now - v_newest));
    remedy := e'-- is a server connected? If not, start it (npm run server); if so: RUNBOOK.md, "Heartbeats are refused"'
      '\nselect usename, application_name, state, count(*) from pg_stat_activity where usename like ''fleet%'' group by 1, 2, 3 order by 1, 2, 3;';
  end if;
  return next;

  check_name := 'silent_cohorts';
  select
    string_agg(
      format(
        '%s: %s of %s devices since %s, usually %s %%',
        a.cohort, a.gone_quiet, a.active, to_char(a.window_start, 'HH24:MI'), round((100 * a.usual_share)::numeric)
      ),
      '; ' order by a.place
    ) filter (where a.is_alarming),
    string_agg(
      format(
        'select device_id, alias, last_ts, network_type, agent_version, ip from fleet.device_status where %sstatus in (''late'', ''offline'') '
        'order by last_ts desc limit 50;',
        case when a.place > 1 then format('cohort = %L and ', a.cohort) end
      ),
      e'\n' order by a.place
    ) filter (where a.is_alarming),
    bool_or(a.is_alarming and a.place = 1),
    max(a.muted_reason) filter (where a.place = 1 and a.muted_reason in ('ingest_down', 'ingest_resumed', 'unwatched'))
  into v_names, v_commands, v_is_fleet, v_muted
  from (select l.*, row_number() over () as place from fleet.silence_at(p_now) l) a;
  status := case when v_names is null then 'ok' when v_is_fleet then 'fail' else 'warn' end;
  detail := coalesce(
    'gone quiet: ' || v_names,
    format('not judged: %s', v_muted),
    'no more devices have gone quiet than usual'
  );
  remedy := e'-- what do these share: a place, a network, a version? They are well when they are heard of again\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_silence(timestamptz) is
  'What fleet.check() says of silence: no heartbeat from anybody, and cohorts of which more devices have gone quiet than usual.';
--! EndIncluded functions/check_silence.sql
--! Included functions/check.sql
-- The themes in order of importance. Whatever is broken, one of them fails alone: the others still say what they see.
create or replace function fleet.check(p_now timestamptz default now())
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
  v_theme text;
begin
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_silence($1)', 'check_scheduler($1)', 'check_archive($1)',
    'check_sessions($1)', 'check_storage($1)', 'check_settings()'
  ] loop
    begin
      return query execute 'select * from fleet.' || v_theme using p_now;
    exception when others then
      check_name := split_part(v_theme, '(', 1);
      status := 'fail';
      detail := 'could not look: ' || sqlerrm;
      remedy := format(e'-- shows where it ends\nselect * from fleet.%I();', check_name);
      return next;
    end;
  end loop;
end
$$;

comment on function fleet.check(timestamptz) is
  'One row per thing that can go wrong: ok, warn or fail, with the remedy as commands, one a line: SQL as fleet_dba unless its first line says "-- as superuser" or "-- as fleet_owner", a shell''s where it says "# in a shell". Reads no heartbeats but those of a few devices. Example: select * from fleet.check() where status <> ''ok'';';
--! EndIncluded functions/check.sql
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
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'Sets device_last_status.is_silent for devices silent for three quarters of the time after which they are offline, so that lists of offline devices need no look at the others. Run each minute by pg_cron; if it is not, lists are as right, and slower. Then calls fleet.watch_silence(). Example: call fleet.mark_silent();';
--! EndIncluded procedures/mark_silent.sql
--! Included views/fleet_silence.sql
create or replace view fleet.fleet_silence as
select s.cohort, s.devices, s.active, s.gone_quiet, s.share, s.usual_share, s.ratio, s.is_alarming, s.is_muted, s.muted_reason, s.window_start
from fleet.silence_at(now()) s;

comment on view fleet.fleet_silence is
  'For the whole fleet (all) and each cohort: devices on the roster, those active in the window (since window_start), those of them gone quiet in it, their share, the usual share at this time of day, and whether that is an alarm; muted_reason says why it is not judged: ingest_down, ingest_resumed, unwatched, few_devices, few_samples. Example: select * from fleet.fleet_silence where is_alarming;';
--! EndIncluded views/fleet_silence.sql
--! Included views/missed_beats.sql
create or replace view fleet.missed_beats as
select h.device_id, h.alias, h.cohort, h.status, h.last_ts, h.heard_at, h.expected_interval as heartbeat_interval, m.missed_beats
from (
  select d.*, case when d.said = 'clock_skewed' then d.last_received_at else d.last_ts end as heard_at
  from fleet.device_state d
) h
cross join lateral (
  select fleet.beats_missed(now() - coalesce(h.heard_at, h.enrolled_at), h.expected_interval) as missed_beats
) m
-- The first is cheap, and leaves few rows to the second.
where now() - coalesce(h.heard_at, h.enrolled_at) >= 1.5 * h.expected_interval
  and m.missed_beats > 0
order by m.missed_beats desc, h.device_id;

comment on view fleet.missed_beats is
  'Devices that owe heartbeats: how many each has missed in a row by now, since it was heard of last, or was enrolled and never heard of; most first. Example: select alias, missed_beats from fleet.missed_beats where missed_beats >= 10;';
--! EndIncluded views/missed_beats.sql
--! Included views/fleet_summary.sql
-- Counted by status first, so that each device's status is derived once.
create or replace view fleet.fleet_summary as
select coalesce(d.cohort, '(all)') as cohort,
  coalesce(sum(d.devices), 0)::bigint as devices,
  coalesce(sum(d.devices) filter (where d.status = 'online'), 0)::bigint as online,
  coalesce(sum(d.devices) filter (where d.status = 'late'), 0)::bigint as late,
  coalesce(sum(d.devices) filter (where d.status = 'offline'), 0)::bigint as offline,
  coalesce(sum(d.devices) filter (where d.status = 'new'), 0)::bigint as new,
  coalesce(sum(d.devices) filter (where d.status = 'clock_skewed'), 0)::bigint as clock_skewed,
  coalesce(sum(d.devices) filter (where d.is_unity_down and d.status in ('online', 'late')), 0)::bigint as unity_down
from (
  select s.cohort, s.status, s.unity_running is false as is_unity_down, count(*) as devices
  from fleet.device_status s
  group by s.cohort, s.status, s.unity_running is false
) d
group by grouping sets ((d.cohort), ())
order by grouping(d.cohort) desc, d.cohort;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. Example: select * from fleet.fleet_summary;';
--! EndIncluded views/fleet_summary.sql
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
  fleet.check_silence(timestamptz),
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
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.job_health, fleet.fleet_silence,
  fleet.missed_beats, fleet.silence_samples
to fleet_reader, fleet_dba;
-- For the ops page.
grant select on fleet.partition_health, fleet.archives, fleet.job_health to fleet_server;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_requests, fleet.restore_items to fleet_archiver, fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep, silence_window, silence_share, silence_ratio, silence_min_devices, ingest_gap
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql
