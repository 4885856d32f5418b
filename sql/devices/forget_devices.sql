create or replace function fleet.forget_devices() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device_ids bigint[] := array(select g.device_id from gone g);
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  if cardinality(v_device_ids) > 0 then
    perform fleet.delete_device_rows(v_device_ids);
  end if;
  return null;
end
$$;

comment on function fleet.forget_devices() is
  'Trigger on fleet.devices: a device that is deleted leaves no row behind, except its heartbeats, which fleet.erase_device() '
  'deletes.';
