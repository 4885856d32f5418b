-- Enter migration here

-- Erasures: devices that are removed with everything that they sent.
create table if not exists fleet.erasures (
  erasure_id bigint generated always as identity,
  device_id bigint not null,
  requested_at timestamptz not null default now(),
  requested_by text not null default session_user,
  reason text not null,
  state text not null default 'running',
  waits_for text[],
  rows_other bigint not null default 0,
  finished_at timestamptz,
  last_error text,
  constraint erasures_pkey primary key (erasure_id),
  constraint erasures_device_id_key unique (device_id),
  constraint erasures_state_known check (state in ('running', 'done')),
  constraint erasures_done_is_finished check (state <> 'done' or finished_at is not null)
);
comment on table fleet.erasures is
  'Every device that was erased with fleet.erase_device(), never pruned. The id alone says nothing about a device whose data is '
  'gone; it is needed to erase the device again from a backup. Read it with fleet.erasure_progress.';
comment on column fleet.erasures.erasure_id is 'The number of the erasure, which messages name instead of the device.';
comment on column fleet.erasures.device_id is 'The id that the device had. Ids are never given to another device.';
comment on column fleet.erasures.requested_at is 'When the erasure was requested.';
comment on column fleet.erasures.requested_by is 'The login that requested it.';
comment on column fleet.erasures.reason is 'Why, as the login said.';
comment on column fleet.erasures.state is
  'running, or done: no table has a row of the device, and no archive and no other object of the store, as far as the database '
  'knows them.';
comment on column fleet.erasures.waits_for is
  'The transactions that had begun when the device was deleted and may still write heartbeats of it. Null: not looked up yet.';
comment on column fleet.erasures.rows_other is 'How many rows were deleted that are no heartbeats.';
comment on column fleet.erasures.finished_at is 'When it was done.';
comment on column fleet.erasures.last_error is 'What the erasure as a whole waits for; null: nothing.';

create table if not exists fleet.erasure_items (
  erasure_id bigint not null,
  partition_name text not null,
  online_at timestamptz,
  rows_online bigint not null default 0,
  recorded_at timestamptz,
  archive_at timestamptz,
  rows_archived bigint not null default 0,
  replaced jsonb,
  leftovers text[],
  confirmed_at timestamptz,
  confirmed_by text,
  attempts integer not null default 0,
  next_attempt_at timestamptz,
  last_error text,
  constraint erasure_items_pkey primary key (erasure_id, partition_name),
  constraint erasure_items_erasure_id_fkey foreign key (erasure_id) references fleet.erasures (erasure_id) on delete cascade,
  constraint erasure_items_partition_name_fkey foreign key (partition_name) references fleet.hb_partitions (partition_name)
    on delete cascade
);
comment on table fleet.erasure_items is 'The partitions and archives of each erasure.';
comment on column fleet.erasure_items.erasure_id is 'fleet.erasures.erasure_id.';
comment on column fleet.erasure_items.partition_name is 'fleet.hb_partitions.partition_name.';
comment on column fleet.erasure_items.online_at is 'When its table had no heartbeat of the device any more; null: not yet.';
comment on column fleet.erasure_items.rows_online is 'How many heartbeats were deleted from its table.';
comment on column fleet.erasure_items.recorded_at is
  'When a revision of its archive without the device was proven and recorded. The object that it replaced may still be there.';
comment on column fleet.erasure_items.archive_at is 'When the store had no object with the device any more; null: not yet.';
comment on column fleet.erasure_items.rows_archived is 'How many heartbeats the archive had of the device.';
comment on column fleet.erasure_items.replaced is
  'The archive that the revision replaced: archive_url, checksum_sha256, archive_bytes, row_count.';
comment on column fleet.erasure_items.leftovers is 'The keys of the objects that are deleted now that the revision is recorded.';
comment on column fleet.erasure_items.confirmed_at is
  'When a second login compared the revision with the object that it replaced; null: not yet. See settings.proofs_needed.';
comment on column fleet.erasure_items.confirmed_by is 'The login that confirmed it.';
comment on column fleet.erasure_items.attempts is 'How often it has failed in a row.';
comment on column fleet.erasure_items.next_attempt_at is 'When it is tried again; null: at once.';
comment on column fleet.erasure_items.last_error is 'Why the last attempt failed.';
create index if not exists erasure_items_left_idx on fleet.erasure_items (partition_name) where archive_at is null;
comment on index fleet.erasure_items_left_idx is 'The archives that erasures have not been through yet.';
create index if not exists erasure_items_partition_name_idx on fleet.erasure_items (partition_name);
comment on index fleet.erasure_items_partition_name_idx is 'For the foreign key.';

-- Rows that earlier deletions of devices left.
delete from fleet.device_last_status s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.device_commands s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.command_dispatch_log s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.device_unreadable_fields s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.device_availability_daily s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.late_arrivals s where not exists (select from fleet.devices d where d.device_id = s.device_id);

--!include erase/tables_of_devices.sql
--!include devices/delete_device_rows.sql
--!include devices/forget_devices.sql
--!include devices/devices.trigger.sql
--!include erase/lockers_of_devices.sql
--!include erase/add_erasure_items.sql
--!include erase/reopen_erasures.sql
--!include erase/erase_device.sql
--!include erase/retry_erasure.sql
--!include erase/delete_heartbeats.sql
--!include erase/erasure_progress.view.sql
--!include archive/wake_archiver.sql
--!include erase/erase_step.sql
--!include erase/run_erasures.sql
--!include erase/claim_erasure.sql
--!include erase/renew_erasure_lease.sql
--!include erase/check_erasure_lease.sql
--!include erase/begin_erasure.sql
--!include erase/rows_of_device.sql
--!include erase/record_erasure.sql
--!include erase/record_absence.sql
--!include erase/finish_erasure.sql
--!include erase/fail_erasure.sql
--!include erase/erasures_to_confirm.sql
--!include erase/confirm_erasure.sql
--!include archive/claim_partition.sql
--!include archive/claim_restore.sql
--!include archive/register_archive.sql
--!include import/enroll_unknown.sql
--!include jobs/job_definitions.sql
--!include checks/check_erasures.sql
--!include checks/check.sql
--!include setup/grants.sql
