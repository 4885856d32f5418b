create or replace function fleet.get_device(p_device_id bigint) returns fleet.devices
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device fleet.devices;
begin
  select * into v_device from fleet.devices d where d.device_id = p_device_id for update;
  -- A key that is bound to cohorts does not learn whether there are others.
  if not found or not fleet.may_reach(v_device.cohort) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  return v_device;
end
$$;

comment on function fleet.get_device(bigint) is
  'The device, locked until the end of the transaction, if the key or session that acts knows it.';
