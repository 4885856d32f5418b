-- The bounds are variables, so that the planner opens, and locks, only the partitions of that day. With an expression in their
-- place it locks all of them, and waits for one that is being settled.
create or replace function fleet.device_day(p_device_id bigint, p_now timestamptz default now())
returns table (span_start timestamptz, beats integer, unity_down integer, battery_pct numeric, signal_dbm numeric)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  v_last timestamptz := date_bin('10 minutes', fleet.not_in_future(p_now), '2000-01-01 00:00:00+00');
  v_first timestamptz := v_last - interval '23 hours 50 minutes';
begin
  return query
    with spans as (
      select generate_series(v_first, v_last, interval '10 minutes') as span
    ),
    beats as (
      select date_bin('10 minutes', h.ts, '2000-01-01 00:00:00+00') as span, count(*) as beats,
        count(*) filter (where not h.unity_running) as unity_down, avg(h.battery_pct) as battery_pct,
        avg(h.signal_dbm) as signal_dbm
      from fleet.device_heartbeats h
      where h.device_id = p_device_id
        and h.ts >= v_first and h.ts <= p_now
      group by 1
    )
    select s.span, coalesce(b.beats, 0)::integer, coalesce(b.unity_down, 0)::integer, round(b.battery_pct, 1),
      round(b.signal_dbm, 1)
    from spans s
    left join beats b using (span)
    order by s.span;
end
$$;

comment on function fleet.device_day(bigint, timestamptz) is
  'The last 24 hours of a device in spans of ten minutes, oldest first: the number of heartbeats, how many of them with Unity '
  'down, and the means of battery and signal (null without a heartbeat). '
  'Example: select * from fleet.device_day(42) where beats = 0;';
