-- Who may do what. Everything is revoked first, so that only the grants in this file apply.
revoke all on all tables in schema fleet
  from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier, fleet_notifier, fleet_cohort_reader;
revoke all on all routines in schema fleet
  from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier, fleet_notifier, fleet_cohort_reader;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet
  to fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier, fleet_notifier, fleet_cohort_reader;
revoke create on schema fleet_detached from fleet_archiver;
grant usage on schema fleet_detached to fleet_archiver, fleet_verifier, fleet_reader, fleet_dba;

-- Nobody changes heartbeats, not even the owner: rows are dropped with their partition, once its archive is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;
-- Tables of 0.1.0 may have come from an older PostgreSQL.
select fleet.grant_maintain();

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.ingest_batch(json, timestamptz, bytea[], integer[]),
  fleet.authenticate(bytea),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.record_slo(text, json),
  fleet.shard_map(),
  fleet.record_unreadable_fields(json),
  fleet.fleet_summary_of(text[]),
  -- The buttons of the ops page.
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.request_restore(date, date),
  fleet.pause_webhook(text),
  fleet.resume_webhook(text, boolean),
  fleet.close_session(bigint),
  fleet.list_devices_of(text[], text, interval, bigint, integer, text, text),
  fleet.transitions_of_cohorts(text[], text, integer, text),
  fleet.authenticate_key(bytea, text),
  fleet.act(text, text, bytea, text, text, text, boolean),
  fleet.open_session(bytea, text, text, bytea, text[], text[], timestamptz, text, text, text),
  fleet.see_session(bytea),
  fleet.end_session(bytea, timestamptz, boolean, text, text),
  fleet.record_slowed(json),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer, text, text),
  fleet.list_devices_legacy(text, interval, bigint, integer, text, text),
  fleet.marks_hold(interval),  -- called by the view devices_offline
  fleet.counts_hold(timestamptz),  -- called by the view fleet_summary
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.allowed_lag(interval, interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, interval, timestamptz),
  fleet.excused(integer, interval),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.describe_clock(bigint),
  fleet.heartbeat_bucket(timestamptz),
  -- Called by the view device_status_legacy.
  fleet.reported_values(jsonb),
  fleet.silence_at(timestamptz),  -- called by the view fleet_silence
  fleet.transitions_after(text, integer, text),
  fleet.transitions_of(bigint, bigint, integer, text[]),
  fleet.postgres_started_at(),
  fleet.job_history()  -- called by the view job_health
to fleet_server, fleet_reader, fleet_dba;
grant execute on function fleet.table_of(fleet.hb_partitions) to fleet_server, fleet_archiver, fleet_reader, fleet_dba;
-- Called by the views partition_health and storage_growth.
grant execute on function fleet.bytes_of(fleet.hb_partitions) to fleet_server, fleet_archiver, fleet_reader, fleet_dba;

grant execute on function
  fleet.create_device(text, text),
  fleet.revoke_device(bigint),
  fleet.rename_device(bigint, text),
  fleet.move_device(bigint, text),
  fleet.renew_token(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(timestamptz),
  -- The procedures call these with the rights of their caller. The steps run with the owner's rights; see fleet.begin_run().
  fleet.begin_run(text, interval, timestamptz),
  fleet.run_next_step(bigint, integer),
  fleet.end_run(bigint)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_planned_steps(bigint)
to fleet_server, fleet_dba;
grant execute on procedure fleet.maintain(bigint, timestamptz) to fleet_dba;
grant execute on procedure fleet.run_erasures(interval) to fleet_dba;

grant execute on function
  fleet.create_api_key(text, text[], text[], timestamptz),
  fleet.revoke_api_key(text),
  fleet.rotate_api_key(text, interval),
  fleet.close_session(bigint),
  fleet.enroll_device(text, text),
  fleet.erase_device(bigint, text),
  fleet.retry_erasure(bigint),
  fleet.forget_archive(text, text),
  fleet.partitions_being_erased(),
  fleet.erase_step(),  -- called by the procedure run_erasures
  fleet.is_night_missed(timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.rollup_plan(timestamptz),
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
  fleet.audit_unlock(text),  -- called by force_unlock
  fleet.set_cohort_interval(text, interval),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.settle_plan(timestamptz),
  fleet.settle_partition(text, timestamptz),
  fleet.unsettle_partition(text),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.accept_archive(text, text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.roll_up(date, timestamptz, boolean),
  fleet.availability_of_day(date, timestamptz, bigint[]),
  fleet.schedule_jobs(),
  fleet.wake_archiver(text),
  fleet.import_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_import(regclass),
  fleet.forget_import(text),
  fleet.refused_rows(regclass, integer),
  -- The procedures of imports call these with the rights of their caller.
  fleet.begin_import(regclass, jsonb, text, timestamptz, boolean),
  fleet.begin_verification(regclass),
  fleet.begin_abandoning(regclass),
  fleet.import_step(text, integer),
  fleet.end_import(text, text),
  fleet.check_partitions(timestamptz),
  fleet.check_ingest(timestamptz),
  fleet.check_fields(timestamptz),
  fleet.check_silence(timestamptz),
  fleet.check_devices(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_erasures(timestamptz),
  fleet.check_columns(),
  fleet.check_nodes(timestamptz),
  fleet.check_sessions(timestamptz),
  fleet.check_storage(timestamptz),
  fleet.check_imports(timestamptz),
  fleet.check_settings(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_dba;

grant execute on procedure
  fleet.import_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_import(regclass, text),
  fleet.abandon_import(regclass, text),
  fleet.run_import(text, integer, interval, text)
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.content_checksum(regclass, jsonb, integer),
  fleet.count_rows(regclass),
  fleet.checksum_expression(regclass, jsonb, integer),
  fleet.archive_form(text),
  fleet.unarchivable_columns(regclass),
  fleet.map_columns(jsonb, timestamptz),
  fleet.note_columns(),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

-- For its archive.
grant select on fleet.audit_log to fleet_archiver;
grant select on fleet.audit_archives to fleet_dba;
grant execute on function
  fleet.claim_audit_month(text, interval),
  fleet.renew_audit_lease(date, text, interval),
  fleet.record_audit_archive(date, text, integer, text, text, bigint, bigint, text),
  fleet.fail_audit_archive(date, text, text)
to fleet_archiver;

grant execute on function
  fleet.take_index_lock(),
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.lock_retired(text, text),
  fleet.count_retired(text, text, bigint, text, jsonb),
  fleet.record_export(text, text),
  fleet.record_upload(text, text, text, text, bigint, integer),
  fleet.record_columns(text, text, jsonb, integer, integer),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz, text),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text, text),
  fleet.fail_restore(text, text, text),
  fleet.partitions_being_erased(),
  fleet.claim_erasure(text, interval),
  fleet.renew_erasure_lease(text, text, interval),
  fleet.begin_erasure(text, text),
  fleet.record_erasure(
    text, text, bigint[], text, text, bigint, integer, text, bigint, timestamptz, timestamptz, text[]
  ),
  fleet.record_absence(text, text, bigint[], text),
  fleet.finish_erasure(text, text),
  fleet.fail_erasure(text, text, text),
  fleet.register_archive(
    text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
    integer, text
  )
to fleet_archiver;

-- What the notifier is given of devices is the text of the messages that it has to send. Also the secrets of the webhooks.
grant execute on function
  fleet.claim_deliveries(text, integer, interval, integer),
  fleet.record_delivery(bigint, text, integer),
  fleet.fail_delivery(bigint, text, integer, text, boolean, interval),
  fleet.release_deliveries(text),
  fleet.notifier_heartbeat(text, text)
to fleet_notifier;
grant execute on function
  fleet.webhook_events(),
  fleet.create_webhook(text, text, text[], text, interval, interval, text),
  fleet.pause_webhook(text),
  fleet.resume_webhook(text, boolean),
  fleet.remove_webhook(text),
  fleet.rotate_webhook_secret(text, interval),
  fleet.test_webhook(text),
  fleet.replay_webhook(text, bigint),
  fleet.retry_deliveries(text, text),
  fleet.dismiss_deliveries(text),
  fleet.wake_notifier(text),
  fleet.check_webhooks(timestamptz)
to fleet_dba;
grant execute on function fleet.webhook_origin(text) to fleet_reader, fleet_dba, fleet_server;  -- called by webhook_health
grant select on fleet.webhook_health to fleet_reader, fleet_dba;
grant select on fleet.notifiers to fleet_dba;
-- Not the secrets. The URL may be one too, and the DBA may have to see where messages go.
grant select (
  webhook_id, webhook_name, url, format, events, cohort, grace, repeat_after, created_at, created_by, paused_at, failures,
  hold_until, last_success_at, last_error_at, last_error, last_status
) on fleet.webhooks to fleet_dba;
grant select on fleet.webhook_deliveries to fleet_dba;

grant select on
  fleet.device_status, fleet.device_status_legacy, fleet.devices_offline, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;
grant select on fleet.unity_down, fleet.recent_changes to fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.storage_history, fleet.job_health,
  fleet.fleet_silence, fleet.fleet_trend, fleet.missed_beats, fleet.silence_samples, fleet.import_progress,
  fleet.device_availability, fleet.slo, fleet.unreadable_fields, fleet.slowed_devices
to fleet_reader, fleet_dba;
grant execute on function fleet.device_availability(date, date, bigint, timestamptz) to fleet_reader, fleet_dba;
-- For the ops page.
grant select on
  fleet.recent_changes, fleet.webhook_health, fleet.partition_health, fleet.archives, fleet.job_health, fleet.fleet_silence, fleet.fleet_trend, fleet.slo,
  fleet.unreadable_fields
to fleet_server;
-- Called by the view import_progress.
grant execute on function fleet.lock_holders(text) to fleet_reader, fleet_dba;
grant select on fleet.archives to fleet_archiver, fleet_verifier;
grant execute on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz, text, text) to fleet_verifier;
grant execute on function
  fleet.partitions_being_erased(),
  fleet.erasures_to_confirm(),
  fleet.confirm_erasure(text, text, text, text, text)
to fleet_verifier;
-- Not to fleet_reader: the ids of erased devices are nobody else's business.
grant select on fleet.erasures, fleet.erasure_items, fleet.erasure_progress to fleet_dba;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts, fleet.device_transitions, fleet.incidents
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_items to fleet_archiver, fleet_dba;
grant select on fleet.restore_requests to fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.api_keys, fleet.open_sessions, fleet.audit_log, fleet.settings_audit to fleet_dba;
-- For the ops page. What is in the log is decided by the functions that write it.
grant select on fleet.open_sessions, fleet.audit_log to fleet_server;
grant execute on function fleet.find_session(bytea) to fleet_server, fleet_dba;  -- called by the view open_sessions
grant select on
  fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual,
  fleet.device_availability_daily, fleet.rolled_up_days, fleet.late_arrivals, fleet.storage_daily
to fleet_dba;
grant select on fleet.column_changes to fleet_reader, fleet_dba;
grant select on fleet.imports, fleet.import_days, fleet.import_refusals to fleet_dba;
grant select, insert, update, delete on fleet.import_devices to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep, rollups_keep, silence_window, silence_share, silence_ratio,
  silence_min_devices, ingest_gap, archive_stores, proofs_needed,
  settle, settle_max_wait, settle_budget, webhook_keep
) on fleet.settings to fleet_dba;

-- The views of devices read their tables with the rights of the login, so that the policies in access/readers.policies.sql apply.
-- The server gets no more by this than the views show it.
grant select on fleet.device_state, fleet.fleet_counts, fleet.device_unreadable_fields to fleet_server, fleet_reader, fleet_dba;
grant select on fleet.device_last_status, fleet.device_transitions, fleet.cohorts to fleet_server;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_server;
grant select (offline_after) on fleet.settings to fleet_server;
grant select on fleet.device_availability_daily to fleet_reader;
-- A distributed store reads the tables of every view with the rights of the login.
grant select on fleet.device_slowdowns to fleet_reader, fleet_dba;
grant execute on function fleet.seen_cohorts() to fleet_server, fleet_reader, fleet_dba;  -- called by the view fleet_summary

-- Logins that see only their cohorts. What is listed here has a policy, reads such tables with the rights of the login, or leaves
-- out other cohorts itself. Add no function with the owner's rights that returns other devices.
grant select on
  fleet.device_state, fleet.device_status, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary, fleet.fleet_silence,
  fleet.recent_changes, fleet.missed_beats, fleet.device_availability, fleet.unreadable_fields,
  fleet.device_last_status, fleet.device_transitions, fleet.command_dispatch_log, fleet.cohorts,
  fleet.fleet_counts, fleet.device_availability_daily, fleet.device_unreadable_fields
to fleet_cohort_reader;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_cohort_reader;
-- Not who sent a command: that is a person of ours.
grant select (device_id, command_id, command, payload, created_at, acknowledged_at) on fleet.device_commands to fleet_cohort_reader;
grant select (offline_after) on fleet.settings to fleet_cohort_reader;
select fleet.grant_heartbeat_columns();
grant execute on function
  fleet.seen_cohorts(),
  fleet.derive_status(boolean, timestamptz, interval, interval, interval, timestamptz),
  fleet.excused(integer, interval),
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.beats_missed(interval, interval),
  fleet.heartbeat_bucket(timestamptz),
  fleet.marks_hold(interval),
  fleet.counts_hold(timestamptz),
  fleet.silence_at(timestamptz)
to fleet_cohort_reader;
grant execute on function
  fleet.create_reader(text, text[]),
  fleet.set_reader_cohorts(text, text[]),
  fleet.renew_reader_password(text),
  fleet.drop_reader(text),
  fleet.check_readers()
to fleet_dba;
grant select on fleet.readers, fleet.reader_logins to fleet_dba;

-- Old names, which go in 0.3.
grant execute on procedure
  fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_adoption(regclass, text),
  fleet.abandon_adoption(regclass, text),
  fleet.run_adoption(text, integer, interval, text)
to fleet_dba;
grant execute on function
  fleet.adoption_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_adoption(regclass),
  fleet.forget_adoption(text)
to fleet_dba;
grant execute on function fleet.adopt_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
) to fleet_archiver;
grant select on fleet.adoption_progress to fleet_reader, fleet_dba;
