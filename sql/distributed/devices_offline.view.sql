-- Each node looks through its own devices. The marks of fleet.mark_silent(), which spare a plain store that, are known only to the
-- coordinator.
-- Without OFFSET, Citus sorts only within each shard as soon as a query reads from the view.
create or replace view fleet.devices_offline with (security_invoker = true) as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip,
  d.last_received_at, d.reason
from fleet.device_state d
where d.status = 'offline'
order by d.last_received_at
offset 0;

comment on view fleet.devices_offline is
  'The form of fleet.devices_offline for a distributed store: devices silent for longer than settings.offline_after, longest first, '
  'with the reason.';
