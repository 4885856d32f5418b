create or replace function fleet.confirm_erasure(
  p_partition text,
  p_old_checksum_sha256 text,
  p_checksum_sha256 text,
  p_rows_sha256 text,
  p_old_rows_sha256 text
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  if pg_has_role(session_user, 'fleet_archiver', 'member') then
    raise exception using
      errcode = 'FL002',
      message = format('%s may act as the archiver, so it cannot confirm what the archiver proved', session_user),
      hint = 'Confirm with a login that is a member of fleet_verifier and of no other role of the store.';
  end if;
  v_partition := fleet.get_partition(p_partition);
  if p_old_rows_sha256 is distinct from p_rows_sha256
    or (p_checksum_sha256, p_rows_sha256) is distinct from (v_partition.checksum_sha256, v_partition.rows_sha256)
    or exists (
      select from fleet.erasure_items i
      where i.partition_name = p_partition and i.recorded_at is not null and i.archive_at is null
        and i.replaced ->> 'checksum_sha256' is distinct from p_old_checksum_sha256
    ) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the new archive of %s, as %s read it, is not the old one without the erased devices; the old one is kept',
        p_partition, session_user
      ),
      detail = format(
        'sha256 %s, read %s; rows_sha256 %s, read %s, of the old one without the devices %s', v_partition.checksum_sha256,
        p_checksum_sha256, v_partition.rows_sha256, p_rows_sha256, p_old_rows_sha256
      ),
      hint = 'Both objects are kept until they are confirmed. Either one is damaged, or the archiver cannot be trusted: stop it.';
  end if;
  update fleet.erasure_items
  set confirmed_at = now(), confirmed_by = session_user
  where partition_name = p_partition and recorded_at is not null and archive_at is null and confirmed_at is null;
  if not found then
    return false;
  end if;
  perform fleet.record_event('partition.erase.confirm', p_partition, p_detail => session_user::text);
  perform pg_notify('fleet_archiver', p_partition);
  return true;
end
$$;

comment on function fleet.confirm_erasure(text, text, text, text, text) is
  'Records that a second login read the old and the new object of an archive and found that the new one is the old one without '
  'the erased devices. Returns false if there is nothing to confirm. Required before the old object is deleted if '
  'settings.proofs_needed is 2. Used by: npm run archive -- confirm.';
