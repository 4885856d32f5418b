create or replace view fleet.fleet_trend as
select s.sampled_at, s.devices, s.online, s.late, s.offline, s.new, s.clock_skewed, s.unity_down
from fleet.fleet_samples s
order by s.sampled_at;

comment on view fleet.fleet_trend is
  'How many devices were online, late, offline, … in each 10 minutes of the last 8 days, oldest first. There is no row for a '
  'time when nothing ran. '
  'Example: select sampled_at, offline from fleet.fleet_trend where sampled_at > now() - interval ''1 day'';';
