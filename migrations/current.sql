-- Counts of a large fleet, so that a read does not have to count each device.

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

-- A function and a view with one more column.

drop view if exists fleet.fleet_silence;
drop function if exists fleet.silence_at(timestamptz);

-- Functions, procedures, views

--!include status/counts_hold.sql
--!include status/may_be_ahead.sql
--!include status/fleet_summary.view.sql
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

--!include setup/grants.sql
