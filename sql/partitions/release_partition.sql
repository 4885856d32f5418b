create or replace function fleet.release_partition(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.held_reason is null and v_partition.state <> 'restored' then
    return format('partition %s is not held', p_partition);
  end if;
  -- A restored day becomes active again. If it is old enough, the next nightly run retires it, and its archive is proven again.
  update fleet.hb_partitions
  set held_reason = null, held_by = null, state = case state when 'restored' then 'active' else state end
  where partition_name = p_partition;
  perform fleet.record_event('partition.release', p_partition);
  perform fleet.audit(
    'partition.released', 'partition:' || p_partition,
    jsonb_strip_nulls(
      jsonb_build_object('state', v_partition.state, 'reason', v_partition.held_reason, 'held_by', v_partition.held_by)
    )
  );
  return format('partition %s is released', p_partition);
end
$$;

comment on function fleet.release_partition(text) is
  'Ends the hold of a partition, or the stay of a restored day. '
  'Example: select fleet.release_partition(partition_name) from fleet.partition_health where held_reason = ''legal hold'';';
