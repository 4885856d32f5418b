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
  if v_partition.columns is null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is not restored: the columns of its archive are not recorded', p_partition),
      hint = 'The archiver records them from the manifest. Run the archiver version that belongs to this database.';
  end if;
  perform fleet.require_forms(p_partition, v_partition.columns);
  -- An attempt that was cut short may have left its table.
  perform fleet.drop_restoring(p_partition);
  -- The table gets the archive's columns, because the proof needs them. fleet.finish_restore() later changes them to today's
  -- columns.
  execute format('create table fleet.%I (%s)', v_table, (
    select string_agg(format('%I %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality)
    from jsonb_array_elements(v_partition.columns) with ordinality c
  ));
  if fleet.is_distributed() then
    -- Before the rows come: Citus would leave a copy of them on the coordinator.
    execute format(
      'select create_distributed_table(%L, ''device_id'', colocate_with => ''fleet.device_heartbeats'')', format('fleet.%I', v_table)
    );
  end if;
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_restore(text, text) is
  'Creates the empty table for a restore, with the columns of the archive, and returns its name.';
