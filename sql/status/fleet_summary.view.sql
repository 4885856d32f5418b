-- Only one of the two halves runs: the choice is made once, before the first row, and above the subquery, so that no parallel
-- workers are started for nothing. The kept counts are of the whole fleet, so a login that sees only some cohorts counts its own.
-- Devices are counted by status first, so that each device's status is derived once.
create or replace view fleet.fleet_summary with (security_invoker = true) as
select d.cohort, d.devices, d.online, d.late, d.offline, d.new, d.clock_skewed, d.unity_down, d.counted_at
from (
  select k.place, k.cohort, k.devices, k.online, k.late, k.offline, k.new, k.clock_skewed, k.unity_down, k.counted_at
  from fleet.fleet_counts k
  where fleet.seen_cohorts() is null and fleet.counts_hold()
  union all
  select s.place, s.cohort, s.devices, s.online, s.late, s.offline, s.new, s.clock_skewed, s.unity_down, now()
  from (
    select row_number() over (order by grouping(c.cohort) desc, c.cohort) as place,
      coalesce(c.cohort, '(all)') as cohort,
      coalesce(sum(c.devices), 0)::bigint as devices,
      coalesce(sum(c.devices) filter (where c.status = 'online'), 0)::bigint as online,
      coalesce(sum(c.devices) filter (where c.status = 'late'), 0)::bigint as late,
      coalesce(sum(c.devices) filter (where c.status = 'offline'), 0)::bigint as offline,
      coalesce(sum(c.devices) filter (where c.status = 'new'), 0)::bigint as new,
      coalesce(sum(c.devices) filter (where c.status = 'clock_skewed'), 0)::bigint as clock_skewed,
      coalesce(sum(c.devices) filter (where c.is_unity_down and c.status in ('online', 'late', 'clock_skewed')), 0)::bigint
        as unity_down
    from (
      select v.cohort, v.status, v.unity_running is false as is_unity_down, count(*) as devices
      from fleet.device_status v
      group by v.cohort, v.status, v.unity_running is false
    ) c
    group by grouping sets ((c.cohort), ())
  ) s
  where not (fleet.seen_cohorts() is null and fleet.counts_hold())
) d
order by d.place;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. In a large fleet they are counted once a minute, at '
  'counted_at (fleet.count_fleet()). For a login of fleet.create_reader(), (all) is all that it sees. '
  'Example: select * from fleet.fleet_summary;';
