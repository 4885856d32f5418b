-- A smaller fleet is counted in less than 50 ms when somebody asks, to the second.
create or replace function fleet.count_fleet(p_least integer default 50000) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
begin
  if (
    select count(*) from (select from fleet.devices d where d.revoked_at is null limit p_least) f
  ) < p_least then
    delete from fleet.fleet_counts;
    return;
  end if;

  -- In order, so that two runs at the same time wait for each other. Rows are updated in place (HOT), because every row changes
  -- each minute.
  insert into fleet.fleet_counts as k (
    cohort, counted_at, devices, online, late, offline, new, clock_skewed, unity_down, window_start, active, gone_quiet,
    newest_received_at, ahead
  )
  select d.cohort, now(), count(*),
    count(*) filter (where d.status = 'online'),
    count(*) filter (where d.status = 'late'),
    count(*) filter (where d.status = 'offline'),
    count(*) filter (where d.status = 'new'),
    count(*) filter (where d.status = 'clock_skewed'),
    count(*) filter (where d.is_unity_down and d.status in ('online', 'late', 'clock_skewed')),
    w.window_start,
    count(*) filter (where d.overdue <= now() - w.window_start),
    count(*) filter (where d.overdue > interval '0' and d.overdue <= now() - w.window_start),
    max(d.last_received_at) filter (where d.last_received_at <= now()),
    count(*) filter (where d.newest > w.bound)
  from (
    -- OFFSET 0 has the status and the silence of a device computed once.
    select s.cohort, s.status, s.unity_running is false as is_unity_down, s.last_received_at,
      now() - s.last_received_at - fleet.late_after(s.expected_interval) as overdue,
      greatest(s.last_ts, s.last_received_at) as newest
    from fleet.device_state s
    offset 0
  ) d
  cross join (
    select fleet.silence_window_start(now()) as window_start, now() + s.max_future as bound from fleet.settings s
  ) w
  group by d.cohort, w.window_start
  order by d.cohort
  on conflict on constraint fleet_counts_pkey do update
    set counted_at = excluded.counted_at, devices = excluded.devices, online = excluded.online, late = excluded.late,
      offline = excluded.offline, new = excluded.new, clock_skewed = excluded.clock_skewed, unity_down = excluded.unity_down,
      window_start = excluded.window_start, active = excluded.active, gone_quiet = excluded.gone_quiet,
      newest_received_at = excluded.newest_received_at, ahead = excluded.ahead;
  delete from fleet.fleet_counts k
  where k.counted_at <> now();
end
$$;

comment on function fleet.count_fleet(integer) is
  'Counts a large fleet once, for all who read fleet.fleet_summary and fleet.fleet_silence until the next run. With fewer '
  'enrolled devices than p_least nothing is kept. Called each minute by fleet.mark_silent(). If it does not run, the views are '
  'still right, but slower. Example: select fleet.count_fleet();';
