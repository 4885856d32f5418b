create or replace view fleet.slowed_devices as
select d.device_id, d.alias, d.cohort, s.times, s.first_at, s.last_at
from fleet.device_slowdowns s
join fleet.devices d using (device_id);

comment on view fleet.slowed_devices is
  'Devices that send more requests than the servers accept (DEVICE_REQUESTS_PER_MINUTE), a row for each device and hour: how many '
  'requests were refused with 429, and when the first and the last. Kept for settings.quarantine_keep. Example: select device_id, '
  'alias, sum(times) from fleet.slowed_devices where last_at > now() - interval ''1 day'' group by 1, 2 order by 3 desc;';
