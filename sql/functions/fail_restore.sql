create or replace function fleet.fail_restore(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.restore_items
  set state = 'failed', finished_at = now(), last_error = p_error, lease_owner = null, lease_until = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  if not found then
    return;
  end if;
  if exists (select from fleet.hb_partitions where partition_name = p_partition and state = 'dropped') then
    execute format('drop table if exists fleet_detached.%I', p_partition);
  end if;
  perform fleet.record_event('partition.restore.failed', p_partition, p_detail => p_error, p_is_ok => false);
end
$$;

comment on function fleet.fail_restore(text, text, text) is
  'A restore failed: keeps the reason and removes the half-filled table. The archive is untouched.';
