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

-- The statement that stores heartbeats also authenticates them, so no server caches tokens any longer.
alter table fleet.devices add column if not exists changed_at timestamptz;
comment on column fleet.devices.changed_at is
  'When its token, its cohort or its own interval was last changed. Null if never.';
do $$
begin
  if to_regclass('fleet.token_change_log') is not null then
    update fleet.devices d
    set changed_at = l.changed_at
    from (
      select substring(c.subject from '^device:(\d+)$')::bigint as device_id, max(c.changed_at) as changed_at
      from fleet.token_change_log c
      group by 1
    ) l
    where l.device_id = d.device_id;
  end if;
end
$$;
drop trigger if exists devices_token_change on fleet.devices;
drop trigger if exists gateways_token_change on fleet.gateways;
delete from fleet.recorded_triggers where trigger_name in ('devices_token_change', 'gateways_token_change');
drop function if exists fleet.record_token_change();
drop function if exists fleet.token_changes(xid8);
drop function if exists fleet.recent_tokens(integer);
drop function if exists fleet.known_devices(bigint[]);
drop table if exists fleet.token_change_log;
drop function if exists fleet.authenticate(bytea);
drop function if exists fleet.ingest_batch(json, timestamptz);

-- Settled days: past partitions in the order of devices, without the dedupe key.
alter table fleet.hb_partitions add column if not exists settled_at timestamptz;
comment on column fleet.hb_partitions.settled_at is
  'When the partition was rewritten in the order of (device_id, ts) and closed for new rows. Null: it takes rows. See '
  'fleet.settle_partition().';

alter table fleet.settings
  add column if not exists settle boolean not null default true,
  add column if not exists settle_max_wait interval not null default '15 seconds',
  add column if not exists settle_budget interval not null default '15 minutes';
alter table fleet.settings drop constraint if exists settings_settle_max_wait_range;
alter table fleet.settings add constraint settings_settle_max_wait_range check (settle_max_wait > '0');
alter table fleet.settings drop constraint if exists settings_settle_budget_range;
alter table fleet.settings
  add constraint settings_settle_budget_range check (settle_budget > '0' and settle_budget <= '30 minutes');
comment on column fleet.settings.settle is
  'Whether the night settles days for which no heartbeat can come any more: stores them in the order of devices and drops their '
  'dedupe key. False: it settles no further day. Days that are settled stay so; fleet.unsettle_partition() opens one.';
comment on column fleet.settings.settle_max_wait is
  'A day is settled only if its readers will probably wait no longer than this. Measured on two shared cores: 400,000 rows a '
  'second.';
comment on column fleet.settings.settle_budget is
  'For how long a night may go on settling days. It finishes the day that it has begun. The hourly maintenance waits for it.';

--!include status/add_last_status.sql
--!include status/device_last_status.trigger.sql
--!include devices/note_change.sql
--!include devices/devices.trigger.sql
--!include devices/enrolled_devices.view.sql
--!include devices/authenticate.sql
--!include devices/make_device_token.sql
--!include devices/create_device.sql
--!include devices/renew_token.sql
--!include devices/revoke_device.sql
--!include devices/revoke_gateway.sql
--!include devices/set_cohort_interval.sql
--!include import/enroll_unknown.sql
--!include jobs/prune.sql
--!include partitions/relink_tables.sql
--!include checks/check_devices.sql
--!include checks/check_sessions.sql
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
--!include partitions/dedupe_key.sql
--!include partitions/attached_partitions.sql
--!include partitions/has_bounds.sql
--!include partitions/dedupe_index.sql
--!include partitions/newest_index.sql
--!include partitions/is_settled.sql
--!include partitions/bytes_of.sql
--!include partitions/has_pages.sql
--!include partitions/close_partition.sql
--!include partitions/unsettle_partition.sql
--!include partitions/partition_health.view.sql
--!include partitions/storage_growth.view.sql
--!include partitions/retention_plan.sql
--!include partitions/settle_plan.sql
--!include partitions/settle_partition.sql
--!include partitions/sync_partitions.sql
--!include partitions/tune_autovacuum.sql
--!include ingest/ingest_batch.sql
--!include ingest/replay_quarantine.sql
--!include import/prepare_partitions.sql
--!include import/move_blocks.sql
--!include archive/finish_restore.sql
--!include jobs/do_step.sql
--!include jobs/begin_run.sql
--!include jobs/run_next_step.sql
--!include jobs/nightly_plan.sql
--!include jobs/nightly.sql
--!include jobs/maintain.sql
--!include jobs/job_definitions.sql
--!include status/device_day.sql
--!include checks/check_ingest.sql
--!include checks/check_storage.sql
--!include checks/check_partitions.sql
--!include setup/grants.sql
