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

-- Every row changes each minute. With free space in each page these are HOT updates, and VACUUM has nothing to do.
create table if not exists fleet.fleet_counts (
  place bigint not null,
  cohort text not null,
  counted_at timestamptz not null,
  devices bigint not null,
  online bigint not null,
  late bigint not null,
  offline bigint not null,
  new bigint not null,
  clock_skewed bigint not null,
  unity_down bigint not null,
  window_start timestamptz not null,
  active bigint not null,
  gone_quiet bigint not null,
  newest_received_at timestamptz,
  ahead bigint not null,
  constraint fleet_counts_pkey primary key (place)
) with (fillfactor = 50);
comment on table fleet.fleet_counts is
  'The counts of fleet.fleet_summary and fleet.fleet_silence for a large fleet and each of its cohorts, kept by '
  'fleet.count_fleet(). Empty for a small fleet. Read it through these views.';
comment on column fleet.fleet_counts.place is
  'The order of the rows: 1 is the whole fleet, then the cohorts by name, so that no read has to sort names.';
comment on column fleet.fleet_counts.cohort is 'fleet.devices.cohort, or (all).';
comment on column fleet.fleet_counts.counted_at is 'When the fleet was counted. It is the same in all rows.';
comment on column fleet.fleet_counts.devices is 'Devices that were enrolled.';
comment on column fleet.fleet_counts.online is 'Devices that were online.';
comment on column fleet.fleet_counts.late is 'Devices that were late.';
comment on column fleet.fleet_counts.offline is 'Devices that were offline.';
comment on column fleet.fleet_counts.new is 'Devices that had not sent a heartbeat yet.';
comment on column fleet.fleet_counts.clock_skewed is 'Devices that were heard from and whose clock was wrong.';
comment on column fleet.fleet_counts.unity_down is
  'Devices that were online, late or clock_skewed and whose Unity app was down.';
comment on column fleet.fleet_counts.window_start is
  'The start of the window in which active and gone_quiet were counted. It is the same in all rows.';
comment on column fleet.fleet_counts.active is 'Devices that were not quiet at some time in the window.';
comment on column fleet.fleet_counts.gone_quiet is 'Those of the active devices that were quiet when they were counted.';
comment on column fleet.fleet_counts.newest_received_at is 'When the newest heartbeat of these devices had arrived.';
comment on column fleet.fleet_counts.ahead is
  'Devices that were last heard from further in the future than settings.max_future, because the clock of Postgres ran ahead.';

-- Views with another order of columns, and a function with another name of an argument.

-- Without CASCADE, so that Postgres names what others have made of these views. See docs/upgrade.md.
drop function if exists fleet.list_devices(text, interval, bigint, integer, text, text);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer, text, text);
drop view if exists
  fleet.devices_offline, fleet.unity_down, fleet.missed_beats, fleet.fleet_summary, fleet.device_status, fleet.device_status_legacy,
  fleet.device_state;
drop view if exists fleet.fleet_silence;
drop function if exists fleet.silence_at(timestamptz);
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
--!include status/list_devices.sql
--!include status/list_devices_legacy.sql
--!include status/describe_clock.sql
--!include availability/missed_beats.view.sql
--!include status/counts_hold.sql
--!include status/may_be_ahead.sql
--!include status/fleet_summary.view.sql
--!include status/sample_fleet.sql
--!include silence/newest_received_at.sql
--!include silence/silence_window_start.sql
--!include silence/silence_at.sql
--!include silence/fleet_silence.view.sql
--!include silence/silence_metrics.sql
--!include silence/watch_silence.sql
--!include status/count_fleet.sql
--!include status/mark_silent.sql
--!include checks/check_ingest.sql
--!include checks/check_fields.sql
--!include checks/check_silence.sql
--!include jobs/job_history.sql
--!include jobs/scheduler_ages.sql
--!include jobs/is_night_missed.sql
--!include metrics/metric_values.sql
--!include checks/check_partitions.sql
--!include checks/check_archive.sql
--!include ingest/unreadable_fields.view.sql
--!include ingest/record_unreadable_fields.sql
--!include checks/check_devices.sql
--!include checks/check.sql
--!include jobs/prune.sql

--!include setup/grants.sql

-- Imports that are under way get the functions of this version.
select fleet.create_forward_function(i)
from fleet.imports i
where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;
