create or replace function fleet.unsettle_partition(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not fleet.unsettle_table(p_partition) then
    return false;
  end if;
  perform fleet.audit('partition.unsettled', 'partition:' || p_partition);
  return true;
end
$$;

comment on function fleet.unsettle_partition(text) is
  'Opens a settled partition for heartbeats: creates its dedupe key again, and then removes the constraint that refuses new rows. '
  'If somebody dropped the constraint, only the key is missing. Returns false if it takes heartbeats already. The next night '
  'settles it again if it is old enough. '
  'Example: select fleet.unsettle_partition(partition_name) from fleet.partition_health where settled_at is not null limit 1;';
