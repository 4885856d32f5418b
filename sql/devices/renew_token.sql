create or replace function fleet.renew_token(p_device_id bigint) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_device_token(p_device_id);
  v_device fleet.devices := fleet.get_device(p_device_id);
begin
  update fleet.devices
  set token_hash = fleet.hash_token(v_token), revoked_at = null
  where device_id = p_device_id;
  perform fleet.audit(
    'device.token_renewed', 'device:' || p_device_id,
    p_before => jsonb_build_object('alias', v_device.alias, 'revoked_at', v_device.revoked_at)
  );
  perform fleet.record_event(
    'device.token_renewed',
    p_detail => format(
      'device %s (%s) got a new token%s; by %s',
      p_device_id, v_device.alias,
      case
        when v_device.revoked_at is not null
          then format(', the old one had been revoked at %s', date_trunc('second', v_device.revoked_at))
      end,
      (fleet.current_actor()).actor
    )
  );
  return v_token;
end
$$;

comment on function fleet.renew_token(bigint) is
  'Gives a device a new token, which is shown only now. It replaces one that was lost, revoked or never known; the old one '
  'ends with the commit. '
  'Example: select fleet.renew_token(42);';
