create or replace function fleet.begin_restore(p_partition text, p_worker text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_table text := fleet.restoring_name(p_partition);
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'dropped' or not exists (
    select from fleet.restore_items i
    where i.partition_name = p_partition and i.state = 'running' and i.lease_owner = p_worker
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; %s may not restore it', p_partition, v_partition.state, p_worker),
      hint = 'Claim it first with fleet.claim_restore().';
  end if;
  -- A try that was cut short left its table.
  perform fleet.drop_restoring(p_partition);
  execute format('create table fleet.%I (like fleet.device_heartbeats including defaults including comments)', v_table);
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_restore(text, text) is
  'Makes the empty table that a restore is copied into, and returns its name.';
