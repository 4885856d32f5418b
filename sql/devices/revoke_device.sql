create or replace function fleet.revoke_device(p_device_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alias text;
  v_revoked_at timestamptz;
begin
  select d.alias, d.revoked_at into v_alias, v_revoked_at from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_revoked_at is not null then
    return false;
  end if;
  update fleet.devices
  set revoked_at = now()
  where device_id = p_device_id;
  perform fleet.record_event('device.revoked', p_detail => format('device %s (%s); by %s', p_device_id, v_alias, session_user));
  return true;
end
$$;

comment on function fleet.revoke_device(bigint) is
  'Revokes a device''s token: from the commit on, servers refuse it. Returns false if it was already revoked. Its heartbeats stay. '
  'Example: select fleet.revoke_device(42);';
