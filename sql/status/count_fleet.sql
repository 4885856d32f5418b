-- A smaller fleet is counted in less than 50 ms when somebody asks, to the second.
create or replace function fleet.count_fleet(p_least integer default 50000) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_window_start timestamptz;
  v_bound timestamptz;
begin
  if (
    select count(*) from (select from fleet.devices d where d.revoked_at is null limit p_least) f
  ) < p_least then
    delete from fleet.fleet_counts;
    return;
  end if;

  select fleet.silence_window_start(now()), now() + s.max_future into v_window_start, v_bound from fleet.settings s;
  with counted as (
    select d.cohort, count(*) as devices,
      count(*) filter (where d.status = 'online') as online,
      count(*) filter (where d.status = 'late') as late,
      count(*) filter (where d.status = 'offline') as offline,
      count(*) filter (where d.status = 'new') as new,
      count(*) filter (where d.status = 'clock_skewed') as clock_skewed,
      count(*) filter (where d.is_unity_down and d.status in ('online', 'late', 'clock_skewed')) as unity_down,
      count(*) filter (where d.overdue <= now() - v_window_start) as active,
      count(*) filter (where d.overdue > interval '0' and d.overdue <= now() - v_window_start) as gone_quiet,
      max(d.last_received_at) filter (where d.last_received_at <= now()) as newest_received_at,
      count(*) filter (where d.newest > v_bound) as ahead
    from (
      -- OFFSET 0 has the status and the silence of a device computed once.
      select s.cohort, s.status, s.unity_running is false as is_unity_down, s.last_received_at,
        now() - s.last_received_at - fleet.excused(s.next_in_s, s.expected_interval) - fleet.late_after(s.expected_interval)
          as overdue,
        greatest(s.last_ts, s.last_received_at) as newest
      from fleet.device_state s
      offset 0
    ) d
    group by d.cohort
  )
  -- In order, so that two runs at the same time wait for each other. Rows are updated in place (HOT), because every row changes
  -- each minute.
  insert into fleet.fleet_counts as k (
    place, cohort, counted_at, devices, online, late, offline, new, clock_skewed, unity_down, window_start, active, gone_quiet,
    newest_received_at, ahead
  )
  select row_number() over (order by grouping(c.cohort) desc, c.cohort) as place, coalesce(c.cohort, '(all)'), now(),
    sum(c.devices), sum(c.online), sum(c.late), sum(c.offline), sum(c.new), sum(c.clock_skewed), sum(c.unity_down),
    v_window_start, sum(c.active), sum(c.gone_quiet), max(c.newest_received_at), sum(c.ahead)
  from counted c
  group by grouping sets ((c.cohort), ())
  order by place
  on conflict on constraint fleet_counts_pkey do update
    set cohort = excluded.cohort, counted_at = excluded.counted_at, devices = excluded.devices, online = excluded.online,
      late = excluded.late, offline = excluded.offline, new = excluded.new, clock_skewed = excluded.clock_skewed,
      unity_down = excluded.unity_down, window_start = excluded.window_start, active = excluded.active,
      gone_quiet = excluded.gone_quiet, newest_received_at = excluded.newest_received_at, ahead = excluded.ahead;
  delete from fleet.fleet_counts k
  where k.counted_at <> now();
end
$$;

comment on function fleet.count_fleet(integer) is
  'Counts a large fleet once, for all who read fleet.fleet_summary and fleet.fleet_silence until the next run. With fewer '
  'enrolled devices than p_least nothing is kept. Called each minute by fleet.mark_silent(). If it does not run, the views are '
  'still right, but slower. Example: select fleet.count_fleet();';
