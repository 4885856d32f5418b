create or replace function fleet.record_failure(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_max_attempts integer;
begin
  select archive_max_attempts into strict v_max_attempts from fleet.settings;
  update fleet.hb_partitions
  set state = case state when 'archiving' then 'archive_failed' else state end,
    -- An archive that failed its proof is made again from the rows.
    step = case state when 'archiving' then null else step end,
    attempts = attempts + 1,
    -- After 1, 2, 4, ... minutes. When all attempts are used up, fleet.nightly() makes the partition due again.
    next_attempt_at = case
      when attempts + 1 < v_max_attempts then now() + least(interval '1 minute' * (2 ^ least(attempts, 10)), interval '1 hour')
    end,
    last_error = p_error,
    lease_owner = null,
    -- If it is archived but could not be dropped, the lease keeps others away for the same time.
    lease_until = case state
      when 'archived' then now() + least(interval '1 minute' * (2 ^ least(attempts, 10)), interval '1 hour')
    end
  where partition_name = p_partition and lease_owner = p_worker and state in ('archiving', 'archived');
  if not found then
    return;
  end if;
  perform fleet.increment_counter('archive_failures_total');
  perform fleet.record_event('partition.archive.failed', p_partition, p_detail => p_error, p_is_ok => false);
end
$$;

comment on function fleet.record_failure(text, text, text) is
  'Records that archiving failed, why, and when to try again. The partition itself is kept.';
