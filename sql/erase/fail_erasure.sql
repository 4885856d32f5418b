create or replace function fleet.fail_erasure(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.hb_partitions
  set lease_owner = null, lease_until = null
  where partition_name = p_partition and lease_owner = p_worker;
  if not found then
    return;
  end if;
  update fleet.erasure_items i
  set attempts = i.attempts + 1, last_error = p_error,
    -- After 1, 2, 4, ... minutes, at most an hour.
    next_attempt_at = now() + least(interval '1 minute' * (2 ^ least(i.attempts, 10)), interval '1 hour')
  where i.partition_name = p_partition and i.archive_at is null;
  execute format('drop table if exists fleet.%I', left('erasing_' || p_partition, 63));
  perform fleet.record_event('partition.erase.failed', p_partition, p_detail => p_error, p_is_ok => false);
end
$$;

comment on function fleet.fail_erasure(text, text, text) is
  'Records that devices could not be erased from an archive and why, and when to try again. The archive is as it was, or its new '
  'revision is recorded and the old object is still there.';
