-- The names of the field: a plain table is imported, an archive is registered.
do $$
declare
  v_old record;
begin
  for v_old in
    select c.relname from pg_class c where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and c.relname ~ '^adoption'
  loop
    execute format('alter table fleet.%I rename to %I', v_old.relname, regexp_replace(v_old.relname, '^adoption', 'import'));
  end loop;
  for v_old in
    select c.conrelid::regclass::text as relation, c.conname
    from pg_constraint c where c.connamespace = 'fleet'::regnamespace and c.conname ~ '^adoption'
  loop
    execute format(
      'alter table %s rename constraint %I to %I', v_old.relation, v_old.conname, regexp_replace(v_old.conname, '^adoption', 'import')
    );
  end loop;
  for v_old in
    select c.relname from pg_class c where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'i' and c.relname ~ '^adoption'
  loop
    execute format('alter index fleet.%I rename to %I', v_old.relname, regexp_replace(v_old.relname, '^adoption', 'import'));
  end loop;
  for v_old in
    select t.tgrelid::regclass::text as relation, t.tgname from pg_trigger t where t.tgname = 'adoptions_seal'
  loop
    execute format('drop trigger %I on %s', v_old.tgname, v_old.relation);
  end loop;
end
$$;
drop view if exists fleet.adoption_progress;
do $$
declare
  v_name text;
begin
  for v_name in
    select p.oid::regprocedure::text
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace
      and p.proname in (
        'adopt_table', 'abandon_adoption', 'run_adoption', 'verify_adoption', 'adoption_holds', 'adoption_plan', 'adoption_step',
        'begin_adoption', 'begin_adoption_step', 'confirm_adoption', 'end_adoption', 'forget_adoption', 'get_adoption',
        'take_adoption_lock', 'check_adoption', 'adopt_archive', 'lacking_beats', 'set_temperatures', 'count_up'
      )
  loop
    execute format('drop routine %s cascade', v_name);
  end loop;
end
$$;
-- The jobs have a greatest age: other columns.
drop view if exists fleet.job_health;
drop function if exists fleet.job_history();
drop function if exists fleet.job_definitions();

create table if not exists fleet.recorded_triggers (
  relation text not null,
  trigger_name text not null,
  definition text not null,
  constraint recorded_triggers_pkey primary key (relation, trigger_name)
);
comment on table fleet.recorded_triggers is
  'The triggers that the migrations made. fleet.check() fails if one is missing. A migration that drops a trigger deletes its row.';
comment on column fleet.recorded_triggers.relation is 'Table that the trigger is on, with its schema.';
comment on column fleet.recorded_triggers.trigger_name is 'Name of the trigger.';
comment on column fleet.recorded_triggers.definition is 'The statement that creates it, as pg_get_triggerdef() prints it.';

--!include archive/accept_archive.sql
--!include archive/archive_columns.sql
--!include archive/archive_form.sql
--!include archive/archive_partition.sql
--!include archive/archiver_heartbeat.sql
--!include archive/archives.view.sql
--!include archive/begin_restore.sql
--!include archive/begin_verification.sql
--!include archive/check_archive_place.sql
--!include archive/check_lease.sql
--!include archive/checksum_expression.sql
--!include archive/claim_partition.sql
--!include archive/claim_restore.sql
--!include archive/compare_with_archive.sql
--!include archive/confirm_archive.sql
--!include archive/content_checksum.sql
--!include archive/count_retired.sql
--!include archive/drop_restoring.sql
--!include archive/fail_restore.sql
--!include archive/finish_restore.sql
--!include archive/map_columns.sql
--!include archive/note_columns.sql
--!include archive/record_columns.sql
--!include archive/record_export.sql
--!include archive/record_failure.sql
--!include archive/record_frozen.sql
--!include archive/record_proof.sql
--!include archive/record_upload.sql
--!include archive/register_archive.sql
--!include archive/release_lease.sql
--!include archive/renew_lease.sql
--!include archive/renew_restore_lease.sql
--!include archive/request_restore.sql
--!include archive/require_forms.sql
--!include archive/reshape_restored.sql
--!include archive/restoring_name.sql
--!include archive/retry_archive.sql
--!include jobs/nightly.sql
--!include archive/retry_failed_archives.sql
--!include archive/rows_hash.sql
--!include archive/take_index_lock.sql
--!include archive/unarchivable_columns.sql
--!include archive/wake_archiver.sql
--!include availability/availability_of_day.sql
--!include availability/beats_missed.sql
--!include availability/device_availability.view.sql
--!include availability/device_availability.sql
--!include availability/finish_rollups.sql
--!include status/expected_interval.sql
--!include availability/is_ingest_down.sql
--!include status/late_after.sql
--!include status/derive_status.sql
--!include status/device_status.view.sql
--!include status/list_devices.sql
--!include status/device_state.view.sql
--!include availability/missed_beats.view.sql
--!include availability/roll_up.sql
--!include partitions/table_of.sql
--!include jobs/not_in_future.sql
--!include availability/rollup_plan.sql
--!include checks/check.sql
--!include checks/check_archive.sql
--!include checks/check_columns.sql
--!include checks/check_imports.sql
--!include checks/check_ingest.sql
--!include checks/check_partitions.sql
--!include checks/check_scheduler.sql
--!include checks/check_sessions.sql
--!include checks/check_settings.sql
--!include checks/check_silence.sql
--!include checks/check_storage.sql
--!include checks/record_triggers.sql
--!include devices/ack_command.sql
--!include devices/authenticate.sql
--!include devices/create_device.sql
--!include devices/create_gateway_token.sql
--!include status/forget_marks.sql
--!include devices/record_token_change.sql
--!include devices/devices.trigger.sql
--!include devices/end_session.sql
--!include devices/enroll_device.sql
--!include devices/gateways.trigger.sql
--!include devices/hash_token.sql
--!include devices/is_session_ended.sql
--!include devices/known_devices.sql
--!include devices/make_token.sql
--!include devices/move_device.sql
--!include devices/recent_tokens.sql
--!include devices/rename_device.sql
--!include devices/renew_token.sql
--!include devices/revoke_device.sql
--!include devices/revoke_gateway.sql
--!include devices/send_command.sql
--!include devices/set_cohort_interval.sql
--!include devices/take_commands.sql
--!include devices/token_changes.sql
--!include import/abandon_import.sql
--!include import/begin_abandoning.sql
--!include import/begin_import.sql
--!include import/begin_import_step.sql
--!include import/confirm_import.sql
--!include import/describe_source.sql
--!include import/end_import.sql
--!include import/enroll_unknown.sql
--!include import/forget_import.sql
--!include import/get_import.sql
--!include import/source_table.sql
--!include import/import_holds.sql
--!include import/import_plan.sql
--!include jobs/lock_holders.sql
--!include import/import_progress.view.sql
--!include import/import_step.sql
--!include import/import_table.sql
--!include import/seal_source.sql
--!include import/imports_seal.trigger.sql
--!include import/read_source.sql
--!include import/missing_heartbeats.sql
--!include import/move_blocks.sql
--!include import/next_batch_blocks.sql
--!include import/prepare_partitions.sql
--!include import/record_forward_failure.sql
--!include import/refused_rows.sql
--!include import/run_import.sql
--!include partitions/retired_ranges.sql
--!include import/source_query.sql
--!include import/start_forwarding.sql
--!include import/stop_forwarding.sql
--!include import/survey_blocks.sql
--!include import/take_import_lock.sql
--!include import/verify_days.sql
--!include import/verify_import.sql
--!include import/write_back_partition.sql
--!include status/record_last_status.sql
--!include ingest/device_heartbeats.trigger.sql
--!include ingest/ingest.sql
--!include ingest/quarantine.sql
--!include ingest/replay_quarantine.sql
--!include jobs/audit_settings.sql
--!include jobs/begin_run.sql
--!include jobs/do_step.sql
--!include jobs/elapsed_ms.sql
--!include jobs/end_overdue_readers.sql
--!include jobs/end_run.sql
--!include jobs/force_unlock.sql
--!include jobs/is_night_missed.sql
--!include jobs/maintain.sql
--!include status/reconcile.sql
--!include status/mark_silent.sql
--!include jobs/job_definitions.sql
--!include jobs/postgres_started_at.sql
--!include jobs/job_history.sql
--!include jobs/job_health.view.sql
--!include jobs/jobs_elsewhere.sql
--!include partitions/attached_partitions.sql
--!include partitions/release_partition.sql
--!include partitions/retention_plan.sql
--!include jobs/nightly_plan.sql
--!include jobs/prune.sql
--!include jobs/record_event.sql
--!include jobs/run_next_step.sql
--!include jobs/run_planned_steps.sql
--!include jobs/run_steps.sql
--!include jobs/schedule_jobs.sql
--!include jobs/scheduler_ages.sql
--!include jobs/settings.trigger.sql
--!include metrics/increment_counter.sql
--!include silence/silence_at.sql
--!include silence/fleet_silence.view.sql
--!include metrics/slo.view.sql
--!include metrics/postgres_metrics.sql
--!include metrics/metric_values.sql
--!include silence/silence_metrics.sql
--!include metrics/metric_definitions.sql
--!include metrics/record_slo.sql
--!include partitions/bind_range.sql
--!include partitions/configure_partman.sql
--!include partitions/create_partitions.sql
--!include partitions/data_coverage.view.sql
--!include partitions/drop_partition.sql
--!include partitions/drop_retired.sql
--!include partitions/ensure_partitions.sql
--!include partitions/find_day_table.sql
--!include partitions/find_renamed.sql
--!include partitions/get_partition.sql
--!include partitions/has_bounds.sql
--!include partitions/hb_partitions.trigger.sql
--!include partitions/seal_relid.sql
--!include partitions/hb_partitions_seal.trigger.sql
--!include partitions/hold_partition.sql
--!include partitions/make_read_only.sql
--!include partitions/note_storage.sql
--!include partitions/partition_health.view.sql
--!include partitions/premake.sql
--!include partitions/recommend_cadence.sql
--!include partitions/refresh_sizes.sql
--!include partitions/relink_tables.sql
--!include partitions/retire_partition.sql
--!include partitions/schedule_vacuum.sql
--!include partitions/set_cadence.sql
--!include partitions/set_premake.sql
--!include partitions/set_retention.sql
--!include partitions/set_up_partitions.sql
--!include partitions/storage_growth.view.sql
--!include partitions/storage_history.view.sql
--!include partitions/sync_partitions.sql
--!include partitions/tune_autovacuum.sql
--!include silence/watch_silence.sql
--!include status/backfill_last_status.sql
--!include status/device_day.sql
--!include status/device_status_legacy.view.sql
--!include status/marks_hold.sql
--!include status/devices_offline.view.sql
--!include status/fleet_summary.view.sql
--!include status/fleet_trend.view.sql
--!include status/heal_last_status.sql
--!include status/list_devices_legacy.sql
--!include status/sample_fleet.sql
--!include status/unity_down.view.sql
--!include aliases/adopt_archive.sql
--!include aliases/adoption_plan.sql
--!include aliases/confirm_adoption.sql
--!include aliases/forget_adoption.sql
--!include aliases/run_adoption.sql
--!include aliases/adopt_table.sql
--!include aliases/verify_adoption.sql
--!include aliases/abandon_adoption.sql
--!include aliases/adoption_progress.view.sql
--!include setup/grants.sql
