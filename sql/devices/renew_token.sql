create or replace function fleet.renew_token(p_device_id bigint) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_device_token(p_device_id);
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
  update fleet.devices
  set token_hash = fleet.hash_token(v_token), revoked_at = null
  where device_id = p_device_id;
  perform fleet.record_event(
    'device.token_renewed',
    p_detail => format(
      'device %s (%s) got a new token%s; by %s',
      p_device_id, v_alias,
      case
        when v_revoked_at is not null then format(', the old one had been revoked at %s', date_trunc('second', v_revoked_at))
      end,
      session_user
    )
  );
  return v_token;
end
$$;

comment on function fleet.renew_token(bigint) is
  'Gives a device a new token, which is shown only now. It replaces one that was lost, revoked or never known; the old one '
  'ends with the commit. '
  'Example: select fleet.renew_token(42);';
