create or replace function fleet.fail_restore(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  update fleet.restore_items
  set state = case when v_partition.state = 'dropped' then 'failed' else 'done' end,
    finished_at = now(), last_error = case when v_partition.state = 'dropped' then p_error end,
    lease_owner = null, lease_until = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  if not found then
    return;
  end if;
  perform fleet.drop_restoring(p_partition);
  if v_partition.state = 'dropped' then
    perform fleet.record_event('partition.restore.failed', p_partition, p_detail => p_error, p_is_ok => false);
  end if;
end
$$;

comment on function fleet.fail_restore(text, text, text) is
  'Records that a restore failed and why, and removes the half-filled table. The archive is untouched. If the day is back by '
  'other means, the restore counts as done.';
