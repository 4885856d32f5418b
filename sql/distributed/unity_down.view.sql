-- Without OFFSET, Citus sorts only within each shard as soon as a query reads from the view.
create or replace view fleet.unity_down with (security_invoker = true) as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.agent_version
from fleet.device_state d
where d.said <> 'ok' and d.unity_running is false and d.status in ('online', 'late', 'clock_skewed')
order by d.last_received_at desc
offset 0;

comment on view fleet.unity_down is
  'The form of fleet.unity_down for a distributed store: devices that are heard from (online, late or clock_skewed) and report that '
  'their Unity app is not running.';
