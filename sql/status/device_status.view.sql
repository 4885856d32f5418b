create or replace view fleet.device_status as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.unity_running,
  d.signal_dbm, d.agent_version, d.ip, d.last_received_at, d.heartbeat_interval, d.enrolled_at, d.extra
from fleet.device_state d;

comment on view fleet.device_status is
  'Each enrolled device: its status (new, online, late, offline or clock_skewed), and what it reported last. '
  'Example: select status, count(*) from fleet.device_status group by status;';
