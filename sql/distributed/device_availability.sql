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
-- The same statement serves one device and all devices, and these need different plans.
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  c_raw_days_most constant integer := 7;  -- a day of 14 million heartbeats takes seconds, and a reader has 30
  v_today date := p_now::date;
  v_since timestamptz;
  v_until timestamptz;
  v_raw_days date[];
  v_counted fleet.device_availability_daily[];
  v_late_ids bigint[];
  v_late_days date[];
begin
  perform fleet.not_in_future(p_now);
  if p_now is null or p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_from > p_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot compute availability from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give the first and the last day, in order: '
        'select * from fleet.device_availability(current_date - 30, current_date - 1);';
  end if;
  v_since := p_from::timestamptz;
  v_until := least((p_to + 1)::timestamptz, p_now);

  v_raw_days := array(
    select g.day::date
    from fleet.hb_partitions p
    join pg_class t on t.oid = fleet.table_of(p)
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
        '%s days from %s to %s are not rolled up yet, so all their heartbeats would be read; at most %s such days are allowed',
        cardinality(v_raw_days), p_from, p_to, c_raw_days_most
      ),
      hint = 'Roll them up now: call fleet.nightly(); or wait for the night, or ask for fewer days or for one device.';
  end if;

  -- What is counted from the heartbeats comes first: a function that asks other nodes cannot be part of a statement that does.
  v_counted := array(
    select a
    from unnest(v_raw_days) as r (day)
    cross join lateral fleet.availability_of_day(r.day, p_now, case when p_device_id is not null then array[p_device_id] end) a
  );
  select array_agg(l.device_id), array_agg(l.day) into v_late_ids, v_late_days
  from (
    select distinct l.device_id, l.day
    from fleet.late_arrivals l
    where l.day between p_from and p_to and l.day <> all (v_raw_days)
      and (p_device_id is null or l.device_id = p_device_id)
  ) l;
  v_counted := v_counted || array(
    select a
    from (select l.day, array_agg(l.device_id) as device_ids from unnest(v_late_ids, v_late_days) as l (device_id, day) group by l.day) l
    cross join lateral fleet.availability_of_day(l.day, p_now, l.device_ids) a
  );

  return query
    with roster as materialized (
      select d.device_id, d.alias, d.cohort, greatest(d.enrolled_at, v_since) as since, least(d.revoked_at, v_until) as until
      from fleet.devices d
      where (p_device_id is null or d.device_id = p_device_id)
        and greatest(d.enrolled_at, v_since) < least(d.revoked_at, v_until)
    ),
    rolled_up as materialized (
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from fleet.device_availability_daily a
      where a.day between p_from and least(p_to, v_today - 1) and a.day <> all (v_raw_days)
        and (p_device_id is null or a.device_id = p_device_id)
    ),
    days as (
      select a.*
      from rolled_up a
      where not exists (
        select from unnest(v_late_ids, v_late_days) as l (device_id, day) where l.device_id = a.device_id and l.day = a.day
      )
      union all
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from unnest(v_counted) a
    ),
    runs as (  -- known days without an unknown day between them
      select d.*, d.day - (row_number() over (partition by d.device_id order by d.day))::integer as run
      from days d
    ),
    joined as (
      select u.*, r.alias, r.cohort, r.since, r.until,
        -- A silence does not end at midnight: it lasts from the last heartbeat of earlier days to the first of this day.
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
  'The form of fleet.device_availability() for a distributed store: availability of each device (or one) from the first to the last UTC '
  'day, both included.';
