-- Enter migration here
alter table fleet.device_last_status
  add column if not exists gap_stopping text,
  add column if not exists gap_battery_pct smallint,
  add column if not exists gap_signal_dbm smallint;
comment on column fleet.device_last_status.gap_stopping is 'The stopping that held until the newest heartbeat; see gap_next_in_s.';
comment on column fleet.device_last_status.gap_battery_pct is 'The battery_pct that held until the newest heartbeat.';
comment on column fleet.device_last_status.gap_signal_dbm is 'The signal_dbm that held until the newest heartbeat.';

create table if not exists fleet.changed_intervals (
  device_id bigint not null,
  constraint changed_intervals_pkey primary key (device_id)
);
comment on table fleet.changed_intervals is
  'Devices whose interval was changed a moment ago, until the minute''s job has written device_last_status.late_after_s.';
comment on column fleet.changed_intervals.device_id is 'fleet.devices.device_id.';

comment on column fleet.incidents.devices is 'How many devices had fallen silent when it was seen.';
drop index if exists fleet.incidents_open_idx;
create index incidents_open_idx on fleet.incidents (kind, subject) where ended_at is null;
comment on index fleet.incidents_open_idx is
  'The open incidents. A subject can have several: one of which some devices never come back, and a newer one.';
drop function if exists fleet.incident_of(text, text, timestamptz);

-- Functions, procedures, views
--!include transitions/beats_before.sql
--!include transitions/silence_reason.sql
--!include transitions/incident_of.sql
--!include transitions/find_incidents.sql
--!include transitions/note_transitions.sql
--!include transitions/note_first_status.sql
--!include transitions/devices_to_note.sql
--!include transitions/end_incidents.sql
--!include transitions/note_intervals.sql
--!include transitions/record_intervals.sql
--!include transitions/note_device.sql
--!include devices/devices.trigger.sql
--!include status/upsert_last_status.sql
--!include status/record_last_status.sql
--!include status/record_arrivals.sql
--!include status/mark_silent.sql
--!include ingest/record_others.sql
--!include setup/grants.sql
