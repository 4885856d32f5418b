-- After a dump was restored, an oid names something else. So each oid is stored with a seal that tells where it was recorded.
alter table fleet.hb_partitions add column if not exists relid_seal text;
comment on column fleet.hb_partitions.relid is
  'oid of the table; null if it is dropped or gone. After a dump was restored it names something else, so use fleet.table_of().';
comment on column fleet.hb_partitions.relid_seal is 'fleet_guard.seal(relid) when relid was recorded; set by a trigger.';
alter table fleet.adoptions add column if not exists relid_seal text;
comment on column fleet.adoptions.relid_seal is 'fleet_guard.seal(relid) when relid was recorded; set by a trigger.';

-- An archive owns its schema: its columns are recorded with it, as they were when the day was detached.
alter table fleet.hb_partitions
  add column if not exists columns jsonb,
  add column if not exists columns_at timestamptz,
  add column if not exists checksum_version smallint,
  add column if not exists manifest_format smallint;
comment on column fleet.hb_partitions.columns is
  'The columns of its archive, in order, as [{"name", "type"}]; null for an archive from before 0.2 until the archiver has read its manifest.';
comment on column fleet.hb_partitions.columns_at is
  'The time at which the table had the columns of the archive; fleet.map_columns() follows later changes. Null: before the first change in fleet.column_changes.';
comment on column fleet.hb_partitions.checksum_version is 'The version of the definition of content_checksum; see fleet.content_checksum().';
comment on column fleet.hb_partitions.manifest_format is 'The format_version of the manifest of its archive.';

alter table fleet.restore_items add column if not exists left_out text;
comment on column fleet.restore_items.left_out is
  'The columns of the archive that the table no longer has; their values stay in the archive. Null: none.';

create table if not exists fleet.heartbeat_columns (
  name text not null constraint heartbeat_columns_pkey primary key,
  type text not null,
  attnum smallint not null,
  relid oid not null,
  system_identifier bigint not null
);
comment on table fleet.heartbeat_columns is
  'The columns that fleet.device_heartbeats had at the last call of fleet.note_columns().';
comment on column fleet.heartbeat_columns.name is 'Name of the column.';
comment on column fleet.heartbeat_columns.type is 'Its type, as format_type() names it.';
comment on column fleet.heartbeat_columns.attnum is 'Its number, which a rename does not change.';
comment on column fleet.heartbeat_columns.relid is 'oid of the table. In another table, as after a dump was restored, the numbers mean nothing.';
comment on column fleet.heartbeat_columns.system_identifier is 'The cluster that the oid belongs to; 0 if it is hidden.';

create table if not exists fleet.column_changes (
  change_id bigint generated always as identity constraint column_changes_pkey primary key,
  changed_at timestamptz not null,
  change text not null constraint column_changes_change_known check (change in ('added', 'dropped', 'renamed', 'retyped')),
  name text not null,
  new_name text,
  type text,
  new_type text
);
comment on table fleet.column_changes is
  'Changes of the columns of fleet.device_heartbeats, by which older archives are read and restored under today''s names.';
comment on column fleet.column_changes.change_id is 'Order of the changes.';
comment on column fleet.column_changes.changed_at is 'When the change was noted; changes that were noted together have the same time.';
comment on column fleet.column_changes.change is 'added, dropped, renamed or retyped.';
comment on column fleet.column_changes.name is 'Name of the column, before the change if it was renamed.';
comment on column fleet.column_changes.new_name is 'Its name after a rename.';
comment on column fleet.column_changes.type is 'Its type before the change; null when it was added.';
comment on column fleet.column_changes.new_type is 'Its type after the change; null when it was dropped.';

drop function if exists fleet.content_checksum(regclass);
drop function if exists fleet.checksum_expression(regclass);
drop function if exists fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz);
drop function if exists fleet.record_upload(text, text, text, text, bigint);
drop function if exists fleet.adopt_archive(text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint);

-- Logout ends a session of the ops page on every server.
create table if not exists fleet.ended_sessions (
  session_hash bytea not null,
  ends_at timestamptz not null,
  constraint ended_sessions_pkey primary key (session_hash),
  constraint ended_sessions_hash_is_sha256 check (length(session_hash) = 32)
);
comment on table fleet.ended_sessions is
  'Sessions of the ops page that were ended by a logout. Kept until they would have expired anyway.';
comment on column fleet.ended_sessions.session_hash is 'SHA-256 of the text in the cookie without its signature, so that nobody can log in with it.';
comment on column fleet.ended_sessions.ends_at is 'When the cookie expires; the next logout after that removes the row.';

-- A run of maintenance runs the steps that the owner planned for it.
create table if not exists fleet.planned_steps (
  run_id bigint not null,
  position bigint not null,
  step text not null,
  partition_name text,
  day date,
  retention interval,
  as_of timestamptz not null,
  pid integer not null,
  constraint planned_steps_pkey primary key (run_id, position)
);
comment on table fleet.planned_steps is
  'The steps that a run of maintenance still has to do; empty between runs. Written by fleet.begin_run(), fleet.run_next_step() and fleet.end_run() only.';
comment on column fleet.planned_steps.run_id is 'The run, as in fleet.events.';
comment on column fleet.planned_steps.position is 'The order of the steps.';
comment on column fleet.planned_steps.step is 'The step. A step that begins with plan_ is replaced by one step for each day or partition that it finds.';
comment on column fleet.planned_steps.partition_name is 'The partition of the step, if it has one.';
comment on column fleet.planned_steps.day is 'The UTC day of the step, if it has one.';
comment on column fleet.planned_steps.retention is 'The retention that was requested for the run; null: that of fleet.settings.';
comment on column fleet.planned_steps.as_of is 'The time that the run uses as now.';
comment on column fleet.planned_steps.pid is 'The backend of the run; no other one may run its steps.';

drop procedure if exists fleet.run_step(bigint, text, text, timestamptz, integer, date);
drop function if exists fleet.begin_run(text);
drop function if exists fleet.end_run(bigint, text, integer);
drop function if exists fleet.release_restore(text, text);
drop function if exists fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz);

alter table fleet.hb_partitions add column if not exists counted jsonb;
comment on column fleet.hb_partitions.counted is
  'The result of fleet.count_retired() for the current export; null before and after it.';

alter table fleet.hb_partitions
  add column if not exists confirmed_at timestamptz,
  add column if not exists confirmed_by text;
comment on column fleet.hb_partitions.confirmed_at is 'When the archive was confirmed by fleet.confirm_archive(); null: not yet.';
comment on column fleet.hb_partitions.confirmed_by is 'The login that confirmed it.';
alter table fleet.settings add column if not exists proofs_needed smallint not null default 1
  constraint settings_proofs_needed_range check (proofs_needed in (1, 2));
comment on column fleet.settings.proofs_needed is
  '1: a partition is dropped once the archiver has proven its archive. 2: it is dropped once a login of fleet_verifier has confirmed the archive, too.';

alter table fleet.settings add column if not exists archive_stores text[] not null default '{}';
comment on column fleet.settings.archive_stores is
  'Additional stores whose archives may be registered, written like ARCHIVE_URL. Stores in which this database has archives need no entry.';

-- Filters by cohort and alias, and the everyday chores of a device.
drop function if exists fleet.list_devices(text, interval, bigint, integer);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer);
create index if not exists devices_cohort_idx on fleet.devices (cohort, device_id);
comment on index fleet.devices_cohort_idx is 'Pages of fleet.list_devices(p_cohort => …).';

alter table fleet.hb_partitions add column if not exists rows_hash numeric;
comment on column fleet.hb_partitions.rows_hash is
  'fleet.rows_hash() of the retired table when its rows were counted. Null for an archive from before 0.2.';

--!include functions/seal_relid.sql
--!include functions/seal_source.sql
--!include functions/has_bounds.sql
--!include functions/table_of.sql
--!include functions/source_table.sql
--!include functions/find_renamed.sql
--!include functions/relink_tables.sql
--!include functions/sync_partitions.sql
--!include functions/begin_run.sql
--!include procedures/nightly.sql
--!include functions/note_storage.sql
--!include functions/not_in_future.sql
--!include functions/rollup_plan.sql
--!include functions/device_availability.sql
--!include functions/check_partitions.sql
--!include procedures/mark_silent.sql
--!include procedures/maintain.sql
--!include functions/job_definitions.sql
--!include functions/find_day_table.sql
--!include functions/adoption_holds.sql
--!include functions/release_partition.sql
--!include functions/retention_plan.sql
--!include functions/refresh_sizes.sql
--!include functions/scheduler_ages.sql
--!include functions/metric_definitions.sql
--!include functions/metric_values.sql
--!include functions/claim_partition.sql
--!include functions/bind_range.sql
--!include functions/retire_partition.sql
--!include functions/adopt_archive.sql
--!include functions/compare_with_archive.sql
--!include functions/drop_retired.sql
--!include functions/drop_partition.sql
--!include functions/retry_archive.sql
--!include functions/accept_archive.sql
--!include functions/check_archive.sql
--!include functions/check_scheduler.sql
--!include functions/job_history.sql
--!include functions/schedule_jobs.sql
--!include functions/check_adoption.sql
--!include functions/forget_adoption.sql
--!include functions/get_adoption.sql
--!include functions/begin_adoption.sql
--!include functions/adoption_step.sql
--!include functions/archive_form.sql
--!include functions/unarchivable_columns.sql
--!include functions/require_forms.sql
--!include functions/archive_columns.sql
--!include functions/checksum_expression.sql
--!include functions/content_checksum.sql
--!include functions/note_columns.sql
--!include functions/map_columns.sql
--!include functions/reshape_restored.sql
--!include functions/record_columns.sql
--!include functions/record_export.sql
--!include functions/record_upload.sql
--!include functions/begin_restore.sql
--!include functions/finish_restore.sql
--!include functions/premake.sql
--!include functions/check_columns.sql
--!include functions/check.sql
--!include functions/archive_partition.sql
--!include functions/create_partitions.sql
--!include functions/hold_partition.sql
--!include functions/record_slo.sql
--!include functions/replay_quarantine.sql
--!include functions/request_restore.sql
--!include functions/roll_up.sql
--!include functions/end_session.sql
--!include functions/is_session_ended.sql
--!include functions/end_overdue_readers.sql
--!include functions/take_index_lock.sql
--!include functions/availability_of_day.sql
--!include functions/check_ingest.sql
--!include functions/check_sessions.sql
--!include functions/check_silence.sql
--!include functions/check_storage.sql
--!include functions/device_day.sql
--!include functions/end_run.sql
--!include functions/ingest.sql
--!include functions/is_night_missed.sql
--!include functions/nightly_plan.sql
--!include functions/run_next_step.sql
--!include functions/set_cadence.sql
--!include functions/silence_at.sql
--!include functions/check_archive_place.sql
--!include functions/count_retired.sql
--!include functions/confirm_archive.sql
--!include functions/record_proof.sql
--!include functions/make_read_only.sql
--!include functions/postgres_started_at.sql
--!include functions/list_devices.sql
--!include functions/list_devices_legacy.sql
--!include functions/create_device.sql
--!include functions/rename_device.sql
--!include functions/move_device.sql
--!include functions/renew_token.sql
--!include functions/revoke_device.sql
--!include functions/rows_hash.sql
--!include procedures/run_planned_steps.sql
--!include views/partition_health.sql
--!include views/storage_growth.sql
--!include views/archives.sql
--!include views/data_coverage.sql
--!include views/job_health.sql
--!include triggers/hb_partitions_seal.sql
--!include triggers/adoptions_seal.sql
--!include triggers/hb_partitions.sql
--!include grants.sql

-- A publication of all tables refuses DELETE on a table without a replica identity. A key would cost ingest an index.
alter table fleet.late_arrivals replica identity full;

-- Seals the oids of a running store. A table that was renamed by hand is attached with the bounds of its partition, or lies in
-- fleet_detached, has a column ts and no other partition's name. Oids that fit neither case came with a restored dump.
update fleet.hb_partitions p
set relid_seal = fleet_guard.seal(p.relid)
where p.relid is not null and p.relid_seal is null
  and exists (
    select from pg_class c
    where c.oid = p.relid and c.relkind = 'r'
      and (
        fleet.has_bounds(c.oid, p.range_start, p.range_end)
        or (
          c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace)
          and (c.relname = p.partition_name or not exists (select from fleet.hb_partitions o where o.partition_name = c.relname))
          and exists (select from pg_attribute t where t.attrelid = c.oid and t.attname = 'ts' and t.atttypid = 'timestamptz'::regtype)
          and not c.relispartition
        )
      )
  );
update fleet.adoptions a
set relid_seal = fleet_guard.seal(a.relid)
where a.relid_seal is null and a.relid = to_regclass(a.source);

-- Notes today's columns; changes are recorded from here on.
select fleet.note_columns();

drop function if exists fleet.protect_partition();
drop function if exists fleet.hand_to_archiver(text);
-- Retired tables belonged to the archiver.
do $$
declare
  v_name text;
begin
  for v_name in
    select c.relname
    from pg_catalog.pg_class c
    where c.relnamespace = 'fleet_detached'::regnamespace and c.relkind = 'r'
      and exists (select from fleet.hb_partitions p where p.partition_name = c.relname)
  loop
    execute format('alter table fleet_detached.%I owner to fleet_owner', v_name);
    perform fleet.make_read_only(v_name);
  end loop;
end
$$;
