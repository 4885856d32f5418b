-- Only one of the two halves runs: the choice is made once, before the first row. In the first half, OFFSET 0 keeps the planner
-- from joining the whole fleet to a few devices, because it cannot guess how many are offline.
create or replace view fleet.devices_offline as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip,
  d.last_received_at
from fleet.device_last_status ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where fleet.marks_hold()
  and ls.is_silent and now() - ls.last_received_at > (select s.offline_after from fleet.settings s)
  and d.status = 'offline'
union all
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip,
  d.last_received_at
from fleet.device_state d
where not fleet.marks_hold() and d.status = 'offline'
order by last_received_at;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first. '
  'Example: select * from fleet.devices_offline where seconds_since > 720;';
