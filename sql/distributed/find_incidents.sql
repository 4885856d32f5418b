-- What is only on the coordinator (incidents, transitions, the watch over ingest) is never in one statement with last status: what is
-- needed of the devices that went offline is read first.
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
  v_cohort_names text[];
  v_ips inet[];
  v_heard_ats timestamptz[];
  v_seconds integer[];
  v_newest timestamptz;
  v_is_down boolean;
  v_around bigint;
  v_began_at timestamptz;
  v_devices integer;
  v_keys text[];
  v_networks text[];
  v_sinces timestamptz[];
  v_untils timestamptz[];
  v_quiets bigint[];
  v_began_ats timestamptz[];
  v_cohorts bigint[];
  v_opened bigint[];
begin
  perform fleet.not_in_future(p_now);
  -- Those that go offline now.
  select array_agg(f.device_id), array_agg(f.cohort), array_agg(f.ip), array_agg(f.last_received_at), array_agg(f.late_after_s)
  into v_fallen, v_cohort_names, v_ips, v_heard_ats, v_seconds
  from (
    select d.device_id, d.cohort, ls.ip, ls.last_received_at, ls.late_after_s
    from fleet.device_state d
    join fleet.device_last_status ls using (device_id)
    where d.device_id = any (p_device_ids) and ls.noted_status is distinct from 'offline'
      and p_now - d.last_received_at - fleet.excused(ls.next_in_s, d.expected_interval)
        > greatest((select s.offline_after from fleet.settings s), 2 * d.expected_interval)
  ) f;
  if v_fallen is null then
    return null;
  end if;
  -- Two runs at the same time must not open an incident twice.
  perform pg_advisory_xact_lock(hashtextextended('fleet.find_incidents', 0));

  -- Ours, while nothing comes in from anybody, and for those who have not come back since. The silence of one or two devices
  -- proves nothing.
  v_newest := fleet.newest_received_at(p_now);
  v_around := (
    select count(*)
    from fleet.device_last_status ls
    where ls.last_received_at > v_newest - interval '10 minutes' and ls.last_received_at <= v_newest
  );
  v_is_down := fleet.is_ingest_down(v_newest, p_now) and v_least <= v_around;
  select min(f.heard_at), count(*) into v_began_at, v_devices
  from unnest(v_heard_ats) as f (heard_at)
  where v_is_down or fleet.was_ingest_down(f.heard_at);
  if v_is_down or v_devices >= v_least then
    with opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      select 'ingest', '(all)', case when v_is_down then v_newest else v_began_at end, p_now,
        case when v_is_down then v_around else v_devices end
      where not exists (select from fleet.incidents i where i.kind = 'ingest' and i.ended_at is null)
      returning incident_id
    )
    select array_agg(o.incident_id) into v_opened from opened o;
  else
    -- In a cohort that fell silent together, more than one in a hundred goes offline within a minute or two.
    select array_agg(g.cohort), array_agg(g.middle - g.around), array_agg(g.middle + g.around)
    into v_keys, v_sinces, v_untils
    from (
      select f.cohort, count(*) as devices,
        -- Not the earliest and the latest: a device that overslept was heard from hours ago.
        percentile_disc(0.5) within group (order by f.heard_at) as middle,
        greatest(max(f.late_after_s), 105) * interval '1 second' as around
      from unnest(v_cohort_names, v_heard_ats, v_seconds) as f (cohort, heard_at, late_after_s)
      where fleet.incident_of(f.cohort, null, f.heard_at, f.late_after_s) is null
      group by f.cohort
    ) g
    cross join lateral (select count(*) as devices from fleet.devices d where d.cohort = g.cohort and d.revoked_at is null) s
    where g.devices * 100 >= s.devices and s.devices >= v_least;
    if v_keys is not null then
      select array_agg(k.cohort), array_agg(k.quiet), array_agg(k.began_at)
      into v_keys, v_quiets, v_began_ats
      from (
        select m.cohort, count(*) as active, count(*) filter (where m.is_quiet) as quiet,
          min(m.heard_at) filter (where m.is_quiet) as began_at
        from (
          select d.cohort, ls.last_received_at as heard_at,
            ls.last_received_at <= c.until
              and p_now - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' as is_quiet
          from fleet.device_last_status ls
          join fleet.devices d using (device_id)
          join unnest(v_keys, v_sinces, v_untils) as c (cohort, since, until) on c.cohort = d.cohort
          where d.revoked_at is null and ls.last_received_at >= c.since
        ) m
        group by m.cohort
      ) k
      where k.quiet >= v_least and k.quiet * 2 >= k.active;
      with opened as (
        insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
        select 'cohort', c.cohort, c.began_at, p_now, c.quiet
        from unnest(v_keys, v_quiets, v_began_ats) as c (cohort, quiet, began_at)
        order by c.cohort
        returning incident_id
      )
      select array_agg(o.incident_id) into v_cohorts from opened o;
    end if;

    v_networks := null;
    select array_agg(g.network), array_agg(g.middle - g.around), array_agg(g.middle + g.around)
    into v_networks, v_sinces, v_untils
    from (
      select f.network, percentile_disc(0.5) within group (order by f.heard_at) as middle,
        greatest(max(f.late_after_s), 105) * interval '1 second' as around
      from (
        select fleet.network_of(u.ip) as network, u.heard_at, u.late_after_s
        from unnest(v_cohort_names, v_ips, v_heard_ats, v_seconds) as u (cohort, ip, heard_at, late_after_s)
        where u.ip is not null and fleet.incident_of(u.cohort, fleet.network_of(u.ip), u.heard_at, u.late_after_s) is null
      ) f
      group by f.network
    ) g;
    if v_networks is not null then
      select array_agg(k.network), array_agg(k.quiet), array_agg(k.began_at)
      into v_networks, v_quiets, v_began_ats
      from (
        select m.network, count(*) as active, count(*) filter (where m.is_quiet) as quiet,
          min(m.heard_at) filter (where m.is_quiet) as began_at
        from (
          select n.network, ls.last_received_at as heard_at,
            ls.last_received_at <= n.until
              and p_now - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' as is_quiet
          from fleet.device_last_status ls
          join unnest(v_networks, v_sinces, v_untils) as n (network, since, until) on n.network = fleet.network_of(ls.ip)
          where ls.noted_status <> 'revoked' and ls.last_received_at >= n.since
        ) m
        group by m.network
      ) k
      where k.quiet >= v_least and k.quiet * 2 >= k.active;
      with opened as (
        insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
        select 'network', c.network, c.began_at, p_now, c.quiet
        from unnest(v_networks, v_quiets, v_began_ats) as c (network, quiet, began_at)
        order by c.network
        returning incident_id
      )
      select array_agg(o.incident_id) into v_opened from opened o;
    end if;
    v_opened := v_cohorts || v_opened;
  end if;
  if v_opened is not null and exists (select from fleet.webhooks) then
    perform fleet.queue_messages(null, v_opened, null);
  end if;
  return v_opened;
end
$$;

comment on function fleet.find_incidents(bigint[], timestamptz) is
  'The form of fleet.find_incidents() for a distributed store: opens the incidents that explain why some of these devices go offline '
  'at this time, and queues the messages about them. Returns those that it opened; null if there are none.';
