-- The devices of a group go offline over about an interval, but are overdue long before. So when the first of them goes offline, all
-- that fell silent with it can be counted. Each statement looks at all groups at once: a scan for each group of a large fleet
-- would take minutes.
create or replace function fleet.find_incidents(p_device_ids bigint[], p_now timestamptz) returns bigint[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_least integer := (select s.silence_min_devices from fleet.settings s);
  v_fallen bigint[];
  v_newest timestamptz;
  v_is_down boolean;
  v_began_at timestamptz;
  v_devices integer;
  v_cohorts bigint[];
  v_opened bigint[];
begin
  perform fleet.not_in_future(p_now);
  -- Those that go offline now.
  select array_agg(d.device_id) into v_fallen
  from fleet.device_state d
  join fleet.device_last_status ls using (device_id)
  where d.device_id = any (p_device_ids) and ls.noted_status is distinct from 'offline'
    and p_now - d.last_received_at - fleet.excused(ls.next_in_s, d.expected_interval)
      > greatest((select s.offline_after from fleet.settings s), 2 * d.expected_interval);
  if v_fallen is null then
    return null;
  end if;
  -- Two runs at the same time must not open an incident twice.
  perform pg_advisory_xact_lock(hashtextextended('fleet.find_incidents', 0));

  -- Ours, while nothing comes in from anybody, and for those who have not come back since. The silence of one or two devices
  -- proves nothing.
  v_newest := fleet.newest_received_at(p_now);
  v_is_down := fleet.is_ingest_down(v_newest, p_now) and v_least <= (
    select count(*)
    from (
      select from fleet.device_last_status ls
      where ls.last_received_at > v_newest - interval '10 minutes' and ls.last_received_at <= v_newest
      limit v_least
    ) f
  );
  select min(ls.last_received_at), count(*) into v_began_at, v_devices
  from fleet.device_last_status ls
  where ls.device_id = any (v_fallen) and (v_is_down or fleet.was_ingest_down(ls.last_received_at));
  if v_is_down or v_devices >= v_least then
    with opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      select 'ingest', '(all)', case when v_is_down then v_newest else v_began_at end, p_now,
        case when v_is_down then (
          select count(*)
          from fleet.device_last_status ls
          where ls.last_received_at > v_newest - interval '10 minutes' and ls.last_received_at <= v_newest
        ) else v_devices end
      where not exists (select from fleet.incidents i where i.kind = 'ingest' and i.ended_at is null)
      returning incident_id
    )
    select array_agg(o.incident_id) into v_opened from opened o;
  else
    with fallen as (
      select d.cohort, ls.last_received_at as heard_at, ls.late_after_s
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      where ls.device_id = any (v_fallen)
        and fleet.incident_of(d.cohort, null, ls.last_received_at, ls.late_after_s) is null
    ),
    -- In a cohort that fell silent together, more than one in a hundred goes offline within a minute or two. Usually this spares
    -- the look at every device of a large cohort.
    cohorts as materialized (
      select f.cohort, f.middle - f.around as since, f.middle + f.around as until
      from (
        select f.cohort, count(*) as devices,
          -- Not the earliest and the latest: a device that overslept was heard from hours ago.
          percentile_disc(0.5) within group (order by f.heard_at) as middle,
          greatest(max(f.late_after_s), 105) * interval '1 second' as around
        from fallen f
        group by f.cohort
      ) f
      cross join lateral (
        select coalesce(
          (select k.devices from fleet.fleet_counts k where k.cohort = f.cohort and k.place > 1 and fleet.counts_hold(p_now)),
          (select count(*) from fleet.devices d where d.cohort = f.cohort and d.revoked_at is null)
        ) as devices
      ) s
      where f.devices * 100 >= s.devices and s.devices >= v_least
    ),
    counted as (
      select m.cohort, count(*) as active, count(*) filter (where m.is_quiet) as quiet,
        min(m.heard_at) filter (where m.is_quiet) as began_at
      from (
        select c.cohort, ls.last_received_at as heard_at,
          ls.last_received_at <= c.until
            and p_now - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' as is_quiet
        from cohorts c
        join fleet.devices d on d.cohort = c.cohort
        join fleet.device_last_status ls on ls.device_id = d.device_id
        where d.revoked_at is null and ls.last_received_at >= c.since
      ) m
      group by m.cohort
    ),
    opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      select 'cohort', c.cohort, c.began_at, p_now, c.quiet
      from counted c
      where c.quiet >= v_least and c.quiet * 2 >= c.active
      order by c.cohort
      returning incident_id
    )
    select array_agg(o.incident_id) into v_cohorts from opened o;

    with fallen as (
      select fleet.network_of(ls.ip) as network, ls.last_received_at as heard_at, ls.late_after_s
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      where ls.device_id = any (v_fallen) and ls.ip is not null
        and fleet.incident_of(d.cohort, fleet.network_of(ls.ip), ls.last_received_at, ls.late_after_s) is null
    ),
    -- The marks find the silent ones of a network without a look at the others.
    networks as materialized (
      select f.network, f.middle - f.around as since, f.middle + f.around as until
      from (
        select f.network, percentile_disc(0.5) within group (order by f.heard_at) as middle,
          greatest(max(f.late_after_s), 105) * interval '1 second' as around
        from fallen f
        group by f.network
      ) f
      join (
        select fleet.network_of(ls.ip) as network, count(*) as silent
        from fleet.device_last_status ls
        where ls.is_silent and p_now - ls.last_received_at < interval '1 day' and exists (select from fallen)
        group by 1
      ) m using (network)
      where m.silent >= v_least
    ),
    counted as (
      select m.network, count(*) as active, count(*) filter (where m.is_quiet) as quiet,
        min(m.heard_at) filter (where m.is_quiet) as began_at
      from (
        select n.network, ls.last_received_at as heard_at,
          ls.last_received_at <= n.until
            and p_now - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' as is_quiet
        from networks n
        join fleet.device_last_status ls on fleet.network_of(ls.ip) = n.network
        where ls.noted_status <> 'revoked' and ls.last_received_at >= n.since
      ) m
      group by m.network
    ),
    opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      select 'network', c.network, c.began_at, p_now, c.quiet
      from counted c
      where c.quiet >= v_least and c.quiet * 2 >= c.active
      order by c.network
      returning incident_id
    )
    select v_cohorts || array_agg(o.incident_id) into v_opened from opened o;
  end if;
  if v_opened is not null and exists (select from fleet.webhooks) then
    perform fleet.queue_messages(null, v_opened, null);
  end if;
  return v_opened;
end
$$;

comment on function fleet.find_incidents(bigint[], timestamptz) is
  'Opens the incidents that explain why some of these devices go offline at this time, and queues the messages about them: ingest '
  'is down, or at least half of the devices of a cohort or network that were active fell silent together, and at least '
  'settings.silence_min_devices. Returns those that it opened; null if there are none. Called each minute by fleet.mark_silent(), '
  'before the transitions are written.';
