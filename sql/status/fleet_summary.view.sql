-- Counted by status first, so that each device's status is derived once.
create or replace view fleet.fleet_summary as
select coalesce(d.cohort, '(all)') as cohort,
  coalesce(sum(d.devices), 0)::bigint as devices,
  coalesce(sum(d.devices) filter (where d.status = 'online'), 0)::bigint as online,
  coalesce(sum(d.devices) filter (where d.status = 'late'), 0)::bigint as late,
  coalesce(sum(d.devices) filter (where d.status = 'offline'), 0)::bigint as offline,
  coalesce(sum(d.devices) filter (where d.status = 'new'), 0)::bigint as new,
  coalesce(sum(d.devices) filter (where d.status = 'clock_skewed'), 0)::bigint as clock_skewed,
  coalesce(sum(d.devices) filter (where d.is_unity_down and d.status in ('online', 'late', 'clock_skewed')), 0)::bigint as unity_down
from (
  select s.cohort, s.status, s.unity_running is false as is_unity_down, count(*) as devices
  from fleet.device_status s
  group by s.cohort, s.status, s.unity_running is false
) d
group by grouping sets ((d.cohort), ())
order by grouping(d.cohort) desc, d.cohort;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. Example: select * from fleet.fleet_summary;';
