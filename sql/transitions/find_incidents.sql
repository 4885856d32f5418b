-- The devices of a group go offline over about a minute, but are overdue long before. So when the first of them goes offline, all
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
  c_around constant interval := interval '105 seconds';
  v_least integer := (select s.silence_min_devices from fleet.settings s);
  v_fallen bigint[];
  v_newest timestamptz;
  v_is_down boolean;
  v_began_at timestamptz;
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
  select min(ls.last_received_at) into v_began_at
  from fleet.device_last_status ls
  where ls.device_id = any (v_fallen) and (v_is_down or fleet.was_ingest_down(ls.last_received_at));
  if v_began_at is not null then
    with opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at)
      values ('ingest', '(all)', case when v_is_down then v_newest else v_began_at end, p_now)
      on conflict (kind, subject) where ended_at is null do nothing
      returning incident_id
    )
    select array_agg(o.incident_id) into v_opened from opened o;
  else
    with fallen as (
      select d.cohort, fleet.network_of(ls.ip) as network, ls.last_received_at as heard_at
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      where ls.device_id = any (v_fallen)
    ),
    -- In a cohort that fell silent together, more than one in a hundred goes offline within a minute or two. Usually this spares
    -- the look at every device of a large cohort.
    cohorts as materialized (
      select f.cohort, f.since, f.until
      from (
        select f.cohort, min(f.heard_at) - c_around as since, max(f.heard_at) + c_around as until, count(*) as devices
        from fallen f
        where not exists (
          select from fleet.incidents i where i.kind = 'cohort' and i.subject = f.cohort and i.ended_at is null
        )
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
    -- The marks find the silent ones of a network without a look at the others.
    networks as materialized (
      select f.network, f.since, f.until
      from (
        select f.network, min(f.heard_at) - c_around as since, max(f.heard_at) + c_around as until
        from fallen f
        where f.network is not null and not exists (
          select from fleet.incidents i where i.kind = 'network' and i.subject = f.network and i.ended_at is null
        )
        group by f.network
      ) f
      join (
        select fleet.network_of(ls.ip) as network, count(*) as silent
        from fleet.device_last_status ls
        where ls.is_silent and p_now - ls.last_received_at < interval '1 day'
        group by 1
      ) m using (network)
      where m.silent >= v_least
    ),
    members as (
      select 'cohort' as kind, c.cohort as subject, c.until, ls.last_received_at as heard_at, ls.late_after_s, ls.next_in_s
      from cohorts c
      join fleet.devices d on d.cohort = c.cohort
      join fleet.device_last_status ls on ls.device_id = d.device_id
      where d.revoked_at is null and ls.last_received_at >= c.since
      union all
      select 'network', n.network, n.until, ls.last_received_at, ls.late_after_s, ls.next_in_s
      from networks n
      join fleet.device_last_status ls on fleet.network_of(ls.ip) = n.network
      where ls.noted_status <> 'revoked' and ls.last_received_at >= n.since
    ),
    counted as (
      select m.kind, m.subject, count(*) as active, count(*) filter (where m.is_quiet) as quiet,
        min(m.heard_at) filter (where m.is_quiet) as began_at
      from (
        select m.kind, m.subject, m.heard_at,
          m.heard_at <= m.until
            and p_now - m.heard_at > greatest(m.late_after_s, m.next_in_s) * interval '1 second' as is_quiet
        from members m
      ) m
      group by m.kind, m.subject
    ),
    opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at)
      select c.kind, c.subject, c.began_at, p_now
      from counted c
      where c.quiet >= v_least and c.quiet * 2 >= c.active
      order by c.kind, c.subject
      on conflict (kind, subject) where ended_at is null do nothing
      returning incident_id
    )
    select array_agg(o.incident_id) into v_opened from opened o;
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
