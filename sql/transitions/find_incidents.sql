-- The devices of a group go offline over about a minute, but are overdue long before. So when the first of them goes offline, all
-- that fell silent with it can be counted.
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
  v_newest timestamptz;
  v_is_down boolean;
  v_began_at timestamptz;
  v_group record;
  v_size bigint;
  v_id bigint;
  v_opened bigint[] := array[]::bigint[];
begin
  -- Ours, while nothing comes in from anybody, and for those who have not come back since.
  v_newest := fleet.newest_received_at(p_now);
  -- The silence of one or two devices proves nothing.
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
  where ls.device_id = any (p_device_ids) and (v_is_down or fleet.was_ingest_down(ls.last_received_at));
  if v_began_at is not null then
    insert into fleet.incidents (kind, subject, began_at, seen_at)
    values ('ingest', '(all)', case when v_is_down then v_newest else v_began_at end, p_now)
    on conflict (kind, subject) where ended_at is null do nothing
    returning incident_id into v_id;
    return array_remove(array[v_id], null);
  end if;

  for v_group in
    with fallen as (
      select d.cohort, fleet.network_of(ls.ip) as network, ls.last_received_at as heard_at
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      where ls.device_id = any (p_device_ids)
    )
    select 'cohort' as kind, f.cohort as subject, min(f.heard_at) - c_around as since, max(f.heard_at) + c_around as until,
      count(*) as devices
    from fallen f
    group by f.cohort
    union all
    select 'network', f.network, min(f.heard_at) - c_around, max(f.heard_at) + c_around, count(*)
    from fallen f
    where f.network is not null
    group by f.network
  loop
    continue when exists (
      select from fleet.incidents i
      where i.kind = v_group.kind and i.subject = v_group.subject and i.ended_at is null
    );
    if v_group.kind = 'cohort' then
      -- In a cohort that fell silent together, more than one in a hundred goes offline within a minute or two. Usually this spares
      -- the look at every device of a large cohort.
      v_size := coalesce(
        (select k.devices from fleet.fleet_counts k where k.cohort = v_group.subject and k.place > 1 and fleet.counts_hold(p_now)),
        (select count(*) from fleet.devices d where d.cohort = v_group.subject and d.revoked_at is null)
      );
      continue when v_group.devices * 100 < v_size or v_size < v_least;
    else
      -- The mark finds the silent ones without a look at the others.
      continue when v_least > (
        select count(*)
        from fleet.device_last_status ls
        where ls.is_silent and ls.last_received_at >= v_group.since and ls.last_received_at <= v_group.until
          and fleet.network_of(ls.ip) = v_group.subject
      );
    end if;
    insert into fleet.incidents (kind, subject, began_at, seen_at)
    select v_group.kind, v_group.subject, g.began_at, p_now
    from (
      select count(*) filter (where m.is_quiet) as quiet, count(*) as active, min(m.heard_at) filter (where m.is_quiet) as began_at
      from (
        select ls.last_received_at as heard_at,
          ls.last_received_at <= v_group.until
            and p_now - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' as is_quiet
        from fleet.device_last_status ls
        join fleet.devices d using (device_id)
        where d.revoked_at is null and ls.last_received_at >= v_group.since
          and case v_group.kind when 'cohort' then d.cohort = v_group.subject else fleet.network_of(ls.ip) = v_group.subject end
      ) m
    ) g
    where g.quiet >= v_least and g.quiet * 2 >= g.active
    on conflict (kind, subject) where ended_at is null do nothing
    returning incident_id into v_id;
    if v_id is not null then
      v_opened := v_opened || v_id;
      v_id := null;
    end if;
  end loop;
  return v_opened;
end
$$;

comment on function fleet.find_incidents(bigint[], timestamptz) is
  'Opens the incidents that explain why these devices go offline at this time: ingest is down, or at least half of the devices of '
  'their cohort or network that were active fell silent together, and at least settings.silence_min_devices. Returns those that '
  'it opened. Called by fleet.note_transitions().';
