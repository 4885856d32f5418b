create or replace view fleet.devices_offline as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_status d
where d.status = 'offline'
order by d.last_ts;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first. Example: select * from fleet.devices_offline where seconds_since > 720;';
