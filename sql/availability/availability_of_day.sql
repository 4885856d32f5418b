-- Availability is counted only here, so a day that is rolled up and one that is not cannot differ. The function is stable, so it
-- reads with the snapshot of the calling statement: a rebuild counts exactly the rows whose late arrivals it deletes.
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
  perform fleet.not_in_future(p_now);
  if v_table is null then
    return;
  end if;
  -- Planned for each call: a few devices are read through the index, all devices in one pass.
  return query execute format(
    $query$
      with roster as materialized (
        select d.device_id, i.heartbeat_interval, (extract(epoch from i.heartbeat_interval) * 1000000)::bigint as interval_us,
          greatest(d.enrolled_at, $1) as since, least(d.revoked_at, $2) as until
        from fleet.devices d
        left join fleet.cohorts c on c.cohort = d.cohort
        left join fleet.device_availability_daily a on a.device_id = d.device_id and a.day = $3
        -- The interval that was asked of the device on that day: a later change does not rewrite history.
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
          -- round(silence / interval) - 1, half up. Most silences are within the interval and miss none: they are not divided.
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
  'Counts the availability of devices on one UTC day from its heartbeats. Returns no row if the heartbeats are no longer in the '
  'database. Used by fleet.roll_up() and fleet.device_availability(). '
  'Example: select * from fleet.availability_of_day(current_date, now(), array[42]);';
