-- As real agents send it: extra values, and clocks that are wrong.

alter table fleet.device_heartbeats add column if not exists extra jsonb;
comment on column fleet.device_heartbeats.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';
alter table fleet.device_heartbeats_template add column if not exists extra jsonb;
comment on column fleet.device_heartbeats_template.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';
alter table fleet.device_last_status add column if not exists extra jsonb;
comment on column fleet.device_last_status.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';

-- (status) --

-- (ingest) --

create table if not exists fleet.device_unreadable_fields (
  device_id bigint not null,
  field text not null,
  times bigint not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  example text not null,
  constraint device_unreadable_fields_pkey primary key (device_id, field)
);
comment on table fleet.device_unreadable_fields is
  'Fields of heartbeats whose value could not be read, by device. Read it with fleet.unreadable_fields.';
comment on column fleet.device_unreadable_fields.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_unreadable_fields.field is
  'The field that was left out. ts, device_id or body: the whole heartbeat was refused because of it.';
comment on column fleet.device_unreadable_fields.times is 'How often.';
comment on column fleet.device_unreadable_fields.first_at is 'When it was first reported.';
comment on column fleet.device_unreadable_fields.last_at is 'When it was last reported.';
comment on column fleet.device_unreadable_fields.example is 'The value that was sent last, as JSON, cut to 64 characters.';
create index if not exists device_unreadable_fields_last_at_idx on fleet.device_unreadable_fields (last_at);
comment on index fleet.device_unreadable_fields_last_at_idx is 'For fleet.check() and for pruning by age.';

-- (checks) --

create index if not exists device_availability_daily_excess_idx on fleet.device_availability_daily (day, device_id)
  where beats > expected * 1.5 + 10;
comment on index fleet.device_availability_daily_excess_idx is
  'The few devices of a day that sent far more than expected, for fleet.check_devices().';

-- Functions, procedures, views

--!include import/create_forward_function.sql
--!include import/start_forwarding.sql
--!include archive/note_columns.sql
--!include ingest/ingest.sql
--!include ingest/unreadable_fields.view.sql
--!include ingest/record_unreadable_fields.sql
--!include checks/check_fields.sql
--!include checks/check_devices.sql
--!include checks/check.sql
--!include jobs/prune.sql

--!include setup/grants.sql

select fleet.note_columns();

-- Those of imports that are under way do not know the new column yet.
select fleet.create_forward_function(i)
from fleet.imports i
where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;
