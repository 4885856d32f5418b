-- Nobody has the right to delete heartbeats, not even the owner. This function takes it for one statement: other sessions never
-- see the grant, because it is revoked in the same transaction.
create or replace function fleet.delete_heartbeats(p_partition text, p_device_ids bigint[])
returns table (device_id bigint, deleted bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_has_rows boolean;
begin
  if exists (
    select from unnest(p_device_ids) d (device_id)
    where not exists (select from fleet.erasures e where e.device_id = d.device_id and e.state = 'running')
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('no erasure covers the devices %s; nothing was deleted', array_to_string(p_device_ids, ', ')),
      hint = 'Heartbeats are deleted only for an erasure: select fleet.erase_device(42, ''why'');';
  end if;
  v_partition := fleet.get_partition(p_partition);
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    return;
  end if;
  execute format('select exists (select 1 from only %s where device_id = any ($1))', v_table) into v_has_rows using p_device_ids;
  if not v_has_rows then
    return;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s); nothing was deleted', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  execute format('grant delete on %s to fleet_owner', v_table);
  for device_id, deleted in
    execute format(
      'with gone as (delete from only %s where device_id = any ($1) returning device_id) '
      'select g.device_id, count(*) from gone g group by g.device_id',
      v_table
    ) using p_device_ids
  loop
    return next;
  end loop;
  execute format('revoke delete on %s from fleet_owner', v_table);
  -- A cold partition has no autovacuum. The job fleet-freeze removes the dead rows from its pages.
  update fleet.hb_partitions
  set cold_xid = pg_current_xact_id()::xid
  where partition_name = p_partition and (cold_xid is not null or state not in ('active', 'restored'));
end
$$;

comment on function fleet.delete_heartbeats(text, bigint[]) is
  'Deletes the heartbeats of devices from the table of one partition, attached, settled or retired, and returns how many of '
  'each. Only for devices of an erasure. Called by fleet.erase_step() and fleet.record_erasure().';
