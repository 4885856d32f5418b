create or replace function fleet.revoke_device(p_device_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device fleet.devices := fleet.get_device(p_device_id);
begin
  if v_device.revoked_at is not null then
    return false;
  end if;
  update fleet.devices
  set revoked_at = now()
  where device_id = p_device_id;
  perform fleet.audit('device.revoked', 'device:' || p_device_id, p_before => jsonb_build_object('alias', v_device.alias));
  perform fleet.record_event(
    'device.revoked',
    p_detail => format('device %s (%s); by %s', p_device_id, v_device.alias, (fleet.current_actor()).actor)
  );
  return true;
end
$$;

comment on function fleet.revoke_device(bigint) is
  'Revokes a device''s token: from the commit on, servers refuse it. Returns false if it was already revoked. Its heartbeats stay. '
  'Example: select fleet.revoke_device(42);';
