create index if not exists device_last_status_new_idx on fleet.device_last_status (device_id) where status is null;
comment on index fleet.device_last_status_new_idx is 'Finds the devices that have not sent a heartbeat yet.';
create index if not exists devices_revoked_idx on fleet.devices (device_id) where revoked_at is not null;
comment on index fleet.devices_revoked_idx is 'Finds the devices whose token was revoked.';
create index if not exists devices_enrolled_at_idx on fleet.devices (enrolled_at);
comment on index fleet.devices_enrolled_at_idx is 'Counts the devices that were enrolled on a day, for fleet.rollup_plan().';
-- Each device has a row of last status; see fleet.add_last_status(). Only a device that was never heard from has no stored status.
insert into fleet.device_last_status (device_id, is_silent)
select d.device_id, false
from fleet.devices d
on conflict do nothing;
update fleet.device_last_status
set status = null
where last_received_at is null and status is not null;

--!include status/add_last_status.sql
--!include status/device_last_status.trigger.sql
--!include devices/devices.trigger.sql
--!include devices/create_device.sql
--!include import/enroll_unknown.sql
--!include status/heal_last_status.sql
--!include status/devices_offline.view.sql
--!include status/unity_down.view.sql
--!include status/list_devices.sql
--!include status/list_devices_legacy.sql
--!include availability/is_ingest_down.sql
--!include availability/rollup_plan.sql
--!include silence/newest_received_at.sql
--!include silence/silence_metrics.sql
--!include checks/check.sql
--!include setup/grants.sql
