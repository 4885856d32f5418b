-- As real agents send it: extra values, and clocks that are wrong.

alter table fleet.device_heartbeats add column if not exists extra jsonb;
comment on column fleet.device_heartbeats.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';
alter table fleet.device_heartbeats_template add column if not exists extra jsonb;
comment on column fleet.device_heartbeats_template.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';
alter table fleet.device_last_status add column if not exists extra jsonb;
comment on column fleet.device_last_status.extra is 'The agent''s own values: a JSON object of at most 2 KiB.';

-- (status) --

-- (ingest) --

-- (checks) --

create index if not exists device_availability_daily_excess_idx on fleet.device_availability_daily (day, device_id)
  where beats > expected * 1.5 + 10;
comment on index fleet.device_availability_daily_excess_idx is
  'The few devices of a day that sent far more than expected, for fleet.check_devices().';

-- Functions, procedures, views

--!include checks/check_devices.sql
--!include checks/check.sql
--!include setup/grants.sql

select fleet.note_columns();
