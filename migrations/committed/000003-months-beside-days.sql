--! Previous: sha1:b70eaa0b86d5b0eb79b035403a8b0d4f5c4eefde
--! Hash: sha1:68a4fc24997d64bb22e5e423b26519b9543769d4
--! Message: Months beside days

-- Months beside days: fleet.set_cadence().
drop function fleet.ensure_partitions(timestamptz[]);
--! Included functions/ensure_partitions.sql
-- The one place that knows that pg_partman 4 and 5 differ in the calls that make partitions.
create or replace function fleet.ensure_partitions(p_starts timestamptz[], p_width interval) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partman_major integer;
  v_interval text;
begin
  if cardinality(p_starts) = 0 then
    return;
  end if;
  select split_part(extversion, '.', 1)::integer into v_partman_major
  from pg_extension
  where extname = 'pg_partman';

  -- pg_partman makes partitions of its configured width only; days and months meet where the cadence was changed.
  select partition_interval into strict v_interval
  from partman.part_config
  where parent_table = 'fleet.device_heartbeats'
  for update;
  if v_interval::interval <> p_width then
    update partman.part_config set partition_interval = p_width::text where parent_table = 'fleet.device_heartbeats';
  end if;
  if v_partman_major >= 5 then
    perform partman.create_partition_time(p_parent_table => 'fleet.device_heartbeats', p_partition_times => p_starts);
  else
    -- 4.7 would ANALYZE the whole parent after it.
    execute 'select partman.create_partition_time(p_parent_table => $1, p_partition_times => $2, p_analyze => false)'
    using 'fleet.device_heartbeats', p_starts;
  end if;
  if v_interval::interval <> p_width then
    update partman.part_config set partition_interval = v_interval where parent_table = 'fleet.device_heartbeats';
  end if;
end
$$;

comment on function fleet.ensure_partitions(timestamptz[], interval) is
  'Has pg_partman make the partitions of a width that begin at these moments; those that exist are left alone.';
--! EndIncluded functions/ensure_partitions.sql
--! Included functions/create_partitions.sql
create or replace function fleet.create_partitions(p_from date, p_to date) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
  v_taken tstzmultirange;
  v_width interval;
  v_starts timestamptz[];
begin
  if p_from is null or p_to is null or p_from > p_to or p_to - p_from > 4000 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot create partitions from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a first and a last day, in order, at most 4000 days apart: select fleet.create_partitions(''2026-08-01'', ''2026-08-31'').';
  end if;

  perform fleet.sync_partitions();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));

  select range_agg(tstzrange(t.range_start, t.range_end)) into v_taken
  from (
    select a.range_start, a.range_end
    from fleet.attached_partitions() a
    union all
    -- A retired day is not made anew beside its archive: fleet.request_restore() brings it back.
    select p.range_start, p.range_end
    from fleet.hb_partitions p
    where p.state not in ('active', 'restored') and not (p.state = 'dropped' and p.row_count = 0)
  ) t;

  for v_width, v_starts in
    select w.width, array_agg(distinct w.range_start order by w.range_start)
    from (
      select
        -- A month in which days have partitions of their own is filled up with days.
        case when m.is_free then interval '1 month' else interval '1 day' end as width,
        case when m.is_free then m.range_start else d.day end as range_start
      from generate_series(p_from::timestamptz, p_to::timestamptz, interval '1 day') as d (day)
      cross join fleet.settings s
      cross join lateral (
        select date_trunc('month', d.day) as range_start,
          s.cadence = 'monthly' and coalesce(
            not v_taken && tstzrange(date_trunc('month', d.day), date_trunc('month', d.day) + interval '1 month'), true
          ) as is_free
      ) m
      where coalesce(not v_taken @> d.day, true)
    ) w
    group by w.width
  loop
    perform fleet.ensure_partitions(v_starts, v_width);
  end loop;

  perform fleet.sync_partitions();
  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Makes the partitions that are missing between two days, both included, and returns their names. Retired days are left to fleet.request_restore(). Example: select fleet.create_partitions(current_date, current_date + 30);';
--! EndIncluded functions/create_partitions.sql
--! Included functions/configure_partman.sql
create or replace function fleet.configure_partman() returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update partman.part_config c
  set partition_interval = w.width,
    -- pg_partman counts partitions, the setting days.
    premake = w.premake
  from fleet.settings s
  cross join lateral (
    select case s.cadence when 'monthly' then '1 month' else '1 day' end as width,
      case s.cadence when 'monthly' then ceil(s.premake_days / 28.0)::integer else s.premake_days end as premake
  ) w
  where c.parent_table = 'fleet.device_heartbeats'
    and (c.partition_interval::interval <> w.width::interval or c.premake <> w.premake);
$$;

comment on function fleet.configure_partman() is
  'Passes settings.cadence and settings.premake_days on to pg_partman.';
--! EndIncluded functions/configure_partman.sql
--! Included functions/set_premake.sql
create or replace function fleet.set_premake(p_days integer) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old integer;
begin
  if p_days is null or p_days not between 1 and 90 then
    raise exception using
      errcode = 'FL422',
      message = format('premake %s is not between 1 and 90 days', coalesce(p_days::text, 'null')),
      hint = 'Example: select fleet.set_premake(14);';
  end if;
  select premake_days into strict v_old from fleet.settings for update;
  update fleet.settings
  set premake_days = p_days
  where premake_days is distinct from p_days;
  perform fleet.configure_partman();
  return format('premake %s days (was %s); the next hourly run makes what is missing', p_days, v_old);
end
$$;

comment on function fleet.set_premake(integer) is
  'Sets how many days ahead partitions are made. Example: select fleet.set_premake(14);';
--! EndIncluded functions/set_premake.sql
--! Included functions/premake.sql
create or replace function fleet.premake(p_now timestamptz default now()) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
  v_from date;
  v_to date;
begin
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));
  select greatest((p_now - s.retention)::date, coalesce((select min(a.range_start)::date from fleet.attached_partitions() a), p_now::date)),
    p_now::date + s.premake_days
  into strict v_from, v_to
  from fleet.settings s;

  -- Right after a change of cadence the last partition is of the old width, which run_maintenance would miscount.
  if (
    select a.range_end = a.range_start + c.partition_interval::interval
    from fleet.attached_partitions() a
    cross join partman.part_config c
    where c.parent_table = 'fleet.device_heartbeats'
    order by a.range_start desc
    limit 1
  ) then
    perform partman.run_maintenance(p_parent_table => 'fleet.device_heartbeats', p_analyze => false, p_jobmon => false);
  end if;

  -- run_maintenance only adds at the far end, by the real clock, and reports "already running" as success: what is still
  -- missing is made by name, also the days that a long outage left out, for devices that send late.
  perform fleet.create_partitions(v_from, v_to);

  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.premake(timestamptz) is
  'Makes the partitions up to premake_days ahead, and those missing within the retention, and returns their names. Run by fleet.maintain().';
--! EndIncluded functions/premake.sql
--! Included functions/set_cadence.sql
create or replace function fleet.set_cadence(p_cadence text, p_now timestamptz default now()) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_settings fleet.settings;
  v_end date;
  v_first date;
begin
  if p_cadence is null or p_cadence not in ('daily', 'monthly') then
    raise exception using
      errcode = 'FL422',
      message = format('cadence %s is neither daily nor monthly', coalesce(p_cadence, 'null')),
      hint = 'Example: select fleet.set_cadence(''daily''); see first: select * from fleet.recommend_cadence();';
  end if;
  select * into strict v_settings from fleet.settings for update;
  if v_settings.cadence = p_cadence then
    return format('the cadence is %s already', p_cadence);
  end if;

  -- Up to here there are partitions; nothing that exists is changed.
  perform fleet.sync_partitions();
  select greatest(max(a.range_end)::date, p_now::date) into v_end from fleet.attached_partitions() a;
  v_first := v_end;
  if p_cadence = 'monthly' and v_end <> date_trunc('month', v_end) then
    v_first := (date_trunc('month', v_end) + interval '1 month')::date;
    perform fleet.create_partitions(v_end, v_first - 1);
  end if;

  update fleet.settings set cadence = p_cadence;
  perform fleet.configure_partman();
  -- The first of the new width, from which pg_partman counts on.
  perform fleet.create_partitions(v_first, greatest(v_first, p_now::date + v_settings.premake_days));
  return format('cadence %s (was %s) from %s on; partitions before that stay as they are', p_cadence, v_settings.cadence, v_first);
end
$$;

comment on function fleet.set_cadence(text, timestamptz) is
  'Sets whether partitions hold a day or a month, from the first day that has none yet (monthly: from the first whole month). Example: select fleet.set_cadence(''monthly'');';
--! EndIncluded functions/set_cadence.sql
--! Included functions/recommend_cadence.sql
create or replace function fleet.recommend_cadence() returns table (cadence text, rows_per_month bigint, reason text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with measured as (
    select sum(p.days) as days, sum(p.rows) as rows
    from (
      select extract(epoch from a.range_end - a.range_start) / 86400 as days,
        greatest(coalesce(nullif(h.row_count, 0), c.reltuples::bigint), 0) as rows
      from fleet.attached_partitions() a
      join pg_class c on c.oid = a.relid
      left join fleet.hb_partitions h on h.partition_name = a.partition_name
      -- Whole ones only, and none from before the fleet began to send.
      where a.range_end <= now() and a.range_end > now() - interval '62 days'
    ) p
    where p.rows > 0
  ),
  monthly as (
    select coalesce(round(rows / days * 30), 0)::bigint as rows_per_month, coalesce(days, 0)::integer as days
    from measured
  )
  select case when m.rows_per_month > 5000000 then 'daily' else 'monthly' end, m.rows_per_month,
    case
      when m.days = 0 then 'no whole day with heartbeats is online yet; decide when there is one'
      else format(
        '%s rows a month, measured over %s days: %s 5000000, %s',
        m.rows_per_month, m.days,
        case when m.rows_per_month > 5000000 then 'above' else 'not above' end,
        case
          when m.rows_per_month > 5000000 then 'so a day is retired and archived at a time'
          else 'so a partition for each day would only cost planning time'
        end
      )
    end
  from monthly m;
$$;

comment on function fleet.recommend_cadence() is
  'Whether partitions should hold a day or a month, by the measured volume (daily above 5 million rows a month). Example: select * from fleet.recommend_cadence();';
--! EndIncluded functions/recommend_cadence.sql
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
comment on column fleet.settings.cadence is 'daily or monthly partitions. Change it by fleet.set_cadence().';
