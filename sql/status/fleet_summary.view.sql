-- Only one of the two halves runs: the choice is made once, before the first row. Devices are counted by status first, so that
-- each device's status is derived once.
create or replace view fleet.fleet_summary as
select coalesce(d.cohort, '(all)') as cohort,
  coalesce(sum(d.devices), 0)::bigint as devices,
  coalesce(sum(d.online), 0)::bigint as online,
  coalesce(sum(d.late), 0)::bigint as late,
  coalesce(sum(d.offline), 0)::bigint as offline,
  coalesce(sum(d.new), 0)::bigint as new,
  coalesce(sum(d.clock_skewed), 0)::bigint as clock_skewed,
  coalesce(sum(d.unity_down), 0)::bigint as unity_down,
  coalesce(max(d.counted_at), now()) as counted_at
from (
  select k.cohort, k.devices, k.online, k.late, k.offline, k.new, k.clock_skewed, k.unity_down, k.counted_at
  from fleet.fleet_counts k
  where fleet.counts_hold()
  union all
  select c.cohort, c.devices,
    case when c.status = 'online' then c.devices end,
    case when c.status = 'late' then c.devices end,
    case when c.status = 'offline' then c.devices end,
    case when c.status = 'new' then c.devices end,
    case when c.status = 'clock_skewed' then c.devices end,
    case when c.is_unity_down and c.status in ('online', 'late', 'clock_skewed') then c.devices end,
    now()
  from (
    select s.cohort, s.status, s.unity_running is false as is_unity_down, count(*)::integer as devices
    from fleet.device_status s
    where not fleet.counts_hold()
    group by s.cohort, s.status, s.unity_running is false
  ) c
) d
group by grouping sets ((d.cohort), ())
order by grouping(d.cohort) desc, d.cohort;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. In a large fleet they are counted once a minute, at '
  'counted_at (fleet.count_fleet()). Example: select * from fleet.fleet_summary;';
