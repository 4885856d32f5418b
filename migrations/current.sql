-- Enter migration here
alter table fleet.hb_partitions add column if not exists rows_sha256 text;
comment on column fleet.hb_partitions.rows_sha256 is
  'SHA-256 of the rows of the archive as CSV, in hex; its manifest has the SQL for it. Null for an archive of manifest format 1 or '
  '2, which has a content_checksum instead.';
comment on column fleet.hb_partitions.content_checksum is
  'For an archive of manifest format 1 or 2: a checksum of the rows that does not depend on their order or format; see '
  'fleet.content_checksum().';
comment on column fleet.hb_partitions.rows_hash is
  'The row hash of fleet.count_rows() of the retired table when its rows were counted. Null for an archive from before 0.2.';
alter table fleet.hb_partitions
  drop constraint if exists hb_partitions_archived_is_proven,
  add constraint hb_partitions_archived_is_proven check (
    state not in ('archived', 'dropped', 'restored')
    or is_proven_empty
    or (
      checksum_sha256 is not null and (rows_sha256 is not null or content_checksum is not null) and proven_at is not null
      and archive_url is not null and row_count is not null
    )
  ),
  drop constraint if exists hb_partitions_rows_sha256_form,
  add constraint hb_partitions_rows_sha256_form check (rows_sha256 ~ '^[0-9a-f]{64}$');

-- Functions that have other parameters or columns now.
drop function if exists fleet.count_retired(text, text, bigint, jsonb, integer);
drop function if exists fleet.record_upload(text, text, text, text, bigint, integer, integer);
drop function if exists fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz);
drop function if exists fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz);
drop function if exists fleet.compare_with_archive(text);
drop function if exists fleet.finish_restore(text, text);
drop function if exists fleet.register_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
);
drop function if exists fleet.claim_restore(text, interval);
drop function if exists fleet.claim_partition(text, interval);
drop function if exists fleet.rows_hash(regclass);

--!include archive/rows_proof.sql
--!include archive/count_rows.sql
--!include archive/lock_retired.sql
--!include archive/count_retired.sql
--!include archive/record_export.sql
--!include archive/record_upload.sql
--!include archive/record_proof.sql
--!include archive/confirm_archive.sql
--!include archive/compare_with_archive.sql
--!include archive/accept_archive.sql
--!include archive/finish_restore.sql
--!include archive/register_archive.sql
--!include archive/archives.view.sql
--!include archive/claim_restore.sql
--!include archive/claim_partition.sql
--!include partitions/make_read_only.sql
--!include partitions/drop_partition.sql
--!include setup/grants.sql

-- The verifier reads retired tables, also those that were retired before.
do $$
declare
  v_name text;
begin
  for v_name in
    select p.partition_name from fleet.hb_partitions p where to_regclass(format('fleet_detached.%I', p.partition_name)) is not null
  loop
    execute format('grant select on fleet_detached.%I to fleet_verifier', v_name);
  end loop;
end
$$;
