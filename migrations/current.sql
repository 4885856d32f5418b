-- Values that cannot be read, an agent's own values, clocks that are wrong, and devices that share a token.

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

create index if not exists device_availability_daily_excess_idx on fleet.device_availability_daily (day, device_id)
  where beats > expected * 1.5 + 10;
comment on index fleet.device_availability_daily_excess_idx is
  'The few devices of a day that sent far more than expected, for fleet.check_devices().';

-- Views with another order of columns, and a function with another name of an argument.

-- Without CASCADE, so that Postgres names what others have made of these views. See docs/upgrade.md.
drop function if exists fleet.list_devices(text, interval, bigint, integer, text, text);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer, text, text);
drop view if exists
  fleet.devices_offline, fleet.unity_down, fleet.missed_beats, fleet.fleet_summary, fleet.device_status, fleet.device_status_legacy,
  fleet.device_state;
drop function if exists fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz);

-- Functions, procedures, views

--!include archive/compare_with_archive.sql
--!include archive/count_retired.sql
--!include ingest/heartbeat_bucket.sql
--!include import/missing_heartbeats.sql
--!include import/confirm_import.sql
--!include import/verify_days.sql
--!include import/move_blocks.sql
--!include import/create_forward_function.sql
--!include import/start_forwarding.sql
--!include archive/note_columns.sql
--!include ingest/add_field.sql

select fleet.add_field('extra', 'jsonb', 'The agent''s own values: a JSON object of at most 2 KiB.');

--!include ingest/stored_ip.sql
--!include ingest/reported_values.sql
--!include jobs/postgres_started_at.sql
--!include status/allowed_lag.sql
--!include status/is_ahead.sql
--!include status/record_arrivals.sql
--!include status/upsert_last_status.sql
--!include status/record_last_status.sql
--!include status/heal_last_status.sql
--!include ingest/quarantine.sql
--!include ingest/record_others.sql
--!include ingest/ingest_batch.sql
--!include ingest/ingest.sql
--!include status/derive_status.sql
--!include status/marks_hold.sql
--!include status/device_state.view.sql
--!include status/device_status.view.sql
--!include status/device_status_legacy.view.sql
--!include status/devices_offline.view.sql
--!include status/unity_down.view.sql
--!include status/fleet_summary.view.sql
--!include status/list_devices.sql
--!include status/list_devices_legacy.sql
--!include status/mark_silent.sql
--!include status/sample_fleet.sql
--!include status/describe_clock.sql
--!include availability/missed_beats.view.sql
--!include silence/silence_at.sql
--!include silence/watch_silence.sql
--!include jobs/job_history.sql
--!include jobs/scheduler_ages.sql
--!include jobs/is_night_missed.sql
--!include metrics/metric_values.sql
--!include checks/check_partitions.sql
--!include checks/check_ingest.sql
--!include checks/check_silence.sql
--!include checks/check_archive.sql
--!include ingest/unreadable_fields.view.sql
--!include ingest/record_unreadable_fields.sql
--!include checks/check_fields.sql
--!include checks/check_devices.sql
--!include checks/check.sql
--!include jobs/prune.sql

--!include setup/grants.sql

-- Imports that are under way get the functions of this version.
select fleet.create_forward_function(i)
from fleet.imports i
where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;
