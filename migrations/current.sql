-- An archive owns its schema: its columns, as they were when the day was detached, are recorded with it.
alter table fleet.hb_partitions
  add column if not exists columns jsonb,
  add column if not exists columns_at timestamptz,
  add column if not exists checksum_version smallint,
  add column if not exists manifest_format smallint;
comment on column fleet.hb_partitions.columns is
  'The columns of its archive, in order, as [{"name", "type"}]; null: of an archive of before 0.2, until the archiver reads them from its manifest.';
comment on column fleet.hb_partitions.columns_at is
  'When the archive''s columns were the table''s; of what was renamed or dropped later, see fleet.map_columns(). Null: before the first change in fleet.column_changes.';
comment on column fleet.hb_partitions.checksum_version is 'How content_checksum is defined; see fleet.content_checksum().';
comment on column fleet.hb_partitions.manifest_format is 'The format_version of the manifest of its archive.';

alter table fleet.restore_items add column if not exists left_out text;
comment on column fleet.restore_items.left_out is
  'Columns that the archive has and the table no longer has; their values stay in the archive. Null: none.';

create table if not exists fleet.heartbeat_columns (
  name text not null constraint heartbeat_columns_pkey primary key,
  type text not null,
  attnum smallint not null,
  relid oid not null,
  system_identifier bigint not null
);
comment on table fleet.heartbeat_columns is
  'The columns that fleet.device_heartbeats had when fleet.note_columns() last looked.';
comment on column fleet.heartbeat_columns.name is 'Name of the column.';
comment on column fleet.heartbeat_columns.type is 'Its type, as format_type() names it.';
comment on column fleet.heartbeat_columns.attnum is 'Its number, which a rename does not change.';
comment on column fleet.heartbeat_columns.relid is 'oid of the table: in another one, as after a dump was restored, the numbers mean nothing.';
comment on column fleet.heartbeat_columns.system_identifier is 'The cluster, for the same reason.';

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
  'What became of the columns of fleet.device_heartbeats, so that archives of before it can be read and restored by today''s names.';
comment on column fleet.column_changes.change_id is 'Order of the changes.';
comment on column fleet.column_changes.changed_at is 'When it was noted; changes that were noted together have the same time.';
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
--!include functions/adopt_archive.sql
--!include functions/begin_restore.sql
--!include functions/finish_restore.sql
--!include functions/retire_partition.sql
--!include functions/premake.sql
--!include functions/check_columns.sql
--!include functions/check.sql
--!include views/archives.sql
--!include grants.sql
-- What the table has now; from here on changes are recorded.
select fleet.note_columns();
