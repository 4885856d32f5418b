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

-- Functions, procedures, views

--!include setup/grants.sql

select fleet.note_columns();
