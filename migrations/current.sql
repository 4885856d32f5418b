-- Clocks that are wrong.

-- (status) --

drop function if exists fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz) cascade;
drop view if exists fleet.device_state, fleet.device_status, fleet.device_status_legacy cascade;

-- Functions, procedures, views

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

--!include setup/grants.sql
