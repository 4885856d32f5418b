create or replace view fleet.fleet_summary as
select coalesce(d.cohort, '(all)') as cohort,
  count(*) as devices,
  count(*) filter (where d.status = 'online') as online,
  count(*) filter (where d.status = 'late') as late,
  count(*) filter (where d.status = 'offline') as offline,
  count(*) filter (where d.status = 'new') as new,
  count(*) filter (where d.status = 'clock_skewed') as clock_skewed,
  count(*) filter (where d.unity_running is false and d.status in ('online', 'late')) as unity_down
from fleet.device_status d
group by grouping sets ((d.cohort), ())
order by grouping(d.cohort) desc, d.cohort;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. Example: select * from fleet.fleet_summary;';
