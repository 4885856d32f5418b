-- As in fleet.devices_offline, devices are sorted before they are joined.
create or replace view fleet.unity_down with (security_invoker = true) as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.agent_version
from (
  select l.device_id, l.last_received_at
  from fleet.device_last_status l
  where l.status <> 'ok' and l.unity_running is false
  order by l.last_received_at desc
) ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where d.status in ('online', 'late', 'clock_skewed')
order by ls.last_received_at desc;

comment on view fleet.unity_down is
  'Devices that are heard from (online, late or clock_skewed) and report that their Unity app is not running. '
  'Example: select alias from fleet.unity_down;';
