-- The archiver gives the first proof. If settings.proofs_needed is 2, nothing is dropped on the archiver's word alone.
create or replace function fleet.confirm_archive(
  p_partition text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_rows_sha256 text default null,
  p_table_sha256 text default null
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  -- The login decides, not the current role: a login that can act as the archiver cannot give a second proof.
  if pg_has_role(session_user, 'fleet_archiver', 'member') then
    raise exception using
      errcode = 'FL002',
      message = format('%s may act as the archiver, so it cannot confirm what the archiver proved', session_user),
      hint = 'Confirm with a login that is a member of fleet_verifier and of no other role of the store.';
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'archived' then
    raise exception using
      errcode = 'FL002',
      message = format(
        'partition %s is %s; an archive can be confirmed only while its partition is archived and not dropped',
        p_partition, v_partition.state
      ),
      hint = format('See select * from fleet.archives where partition_name = %L;', p_partition);
  end if;
  if (p_checksum_sha256, p_rows_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.rows_sha256, v_partition.content_checksum, v_partition.row_count,
    v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the archive of %s, as %s read it, differs from what was archived; the partition is kept', p_partition, session_user
      ),
      detail = format(
        'sha256 %s, read %s; %s, read %s; rows %s, read %s; from %s to %s, read %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256,
        fleet.rows_proof(v_partition.rows_sha256, v_partition.content_checksum),
        fleet.rows_proof(p_rows_sha256, p_content_checksum),
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = format(
        'Keep the partition until this is resolved: select fleet.hold_partition(%L, ''its archive differs'');', p_partition
      );
  end if;
  -- Postgres computed the content checksum of older archives itself. rows_sha256 is what the archiver said, so the second login
  -- has to compute it from the table, too.
  if v_partition.rows_sha256 is not null and p_table_sha256 is distinct from v_partition.rows_sha256
    and (p_table_sha256 is not null or fleet.table_of(v_partition) is not null) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the table of %s, as %s read it, differs from its archive; the partition is kept', p_partition, session_user
      ),
      detail = format('rows_sha256 of the archive %s, of the table %s', p_rows_sha256, coalesce(p_table_sha256, 'not read')),
      hint = format(
        'Either the table was changed after the export, or the archiver cannot be trusted. Keep the partition until this is '
        'resolved: select fleet.hold_partition(%L, ''its archive differs'');', p_partition
      );
  end if;
  if v_partition.confirmed_at is not null then
    return false;
  end if;
  update fleet.hb_partitions
  set confirmed_at = now(), confirmed_by = session_user
  where partition_name = p_partition;
  perform fleet.record_event('partition.archive.confirm', p_partition, p_row_count, p_detail => session_user::text);
  perform pg_notify('fleet_archiver', p_partition);
  return true;
end
$$;

comment on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz, text, text) is
  'Records that a second login read the archive back and found these rows, and the same in the table (p_table_sha256). Returns '
  'false if it was already confirmed. Required before a drop if settings.proofs_needed is 2. Used by: npm run archive -- confirm.';
