create or replace view fleet.device_status with (security_invoker = true) as
select ls.device_id, ls.alias, ls.cohort, ls.status, ls.last_ts, ls.seconds_since, ls.last_received_at, ls.heartbeat_interval,
  ls.enrolled_at, ls.reason,
--!include status/reported_fields.inc.sql
from fleet.device_state ls;

comment on view fleet.device_status is
  'Each enrolled device: its status (new, online, late, offline or clock_skewed), when it was last heard from, why it is '
  'silent (reason, as in fleet.device_transitions; null if it is not), and what it reported last. '
  'Example: select status, count(*) from fleet.device_status group by status;';
