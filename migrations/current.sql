-- Devices that send more requests than a server accepts.
create table if not exists fleet.device_slowdowns (
  device_id bigint not null,
  hour timestamptz not null,
  times bigint not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  constraint device_slowdowns_pkey primary key (device_id, hour)
);
comment on table fleet.device_slowdowns is
  'Requests of devices that were refused because a device sent too many, by device and hour. Read it with fleet.slowed_devices.';
comment on column fleet.device_slowdowns.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_slowdowns.hour is 'The beginning of the hour, in UTC.';
comment on column fleet.device_slowdowns.times is 'How many requests.';
comment on column fleet.device_slowdowns.first_at is 'When the first of them was reported.';
comment on column fleet.device_slowdowns.last_at is 'When the last of them was reported.';
create index if not exists device_slowdowns_last_at_idx on fleet.device_slowdowns (last_at);
comment on index fleet.device_slowdowns_last_at_idx is 'For fleet.check() and for pruning by age.';

--!include ingest/record_slowed.sql
--!include ingest/slowed_devices.view.sql
--!include checks/check_fields.sql
--!include jobs/prune.sql
--!include setup/grants.sql
