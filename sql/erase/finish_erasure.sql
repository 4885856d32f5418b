create or replace function fleet.finish_erasure(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.check_erasure_lease(p_partition, p_worker);
  update fleet.erasure_items i
  set archive_at = now(), leftovers = null, last_error = null, attempts = 0, next_attempt_at = null
  from fleet.settings s
  where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is not null
    and (s.proofs_needed = 1 or i.confirmed_at is not null);
  if not found then
    raise exception using
      errcode = 'FL001',
      message = format('the new archive of %s is not recorded, or not confirmed by a second login', p_partition),
      hint = 'Call fleet.record_erasure() first; with settings.proofs_needed at 2 also run: npm run archive -- confirm.';
  end if;
  update fleet.hb_partitions
  set lease_owner = null, lease_until = null
  where partition_name = p_partition;
end
$$;

comment on function fleet.finish_erasure(text, text) is
  'Records that the objects that a revision without erased devices replaced are deleted, and gives the partition back.';
