create or replace function fleet.send_command(p_device_id bigint, p_command text, p_payload jsonb default null)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_command_id bigint;
begin
  if p_command is null or btrim(p_command) = '' or length(p_command) > 64 then
    raise exception using
      errcode = 'FL422',
      message = 'command must have 1 to 64 characters',
      hint = 'Example: select fleet.send_command(42, ''restart_unity'');';
  end if;
  if octet_length(p_payload::text) > 65536 then
    raise exception using
      errcode = 'FL422',
      message = format('the payload has %s bytes; the limit is 65536', octet_length(p_payload::text)),
      hint = 'Put large data where the device can fetch it, and send the address.';
  end if;
  with sent as (
    insert into fleet.device_commands (device_id, command, payload, created_by)
    select d.device_id, p_command, nullif(p_payload, 'null'), (fleet.current_actor()).actor
    from fleet.devices d
    where d.device_id = p_device_id and d.revoked_at is null and fleet.may_reach(d.cohort)
    returning device_id, command_id
  ),
  logged as (
    insert into fleet.command_dispatch_log (device_id, command_id, event)
    select s.device_id, s.command_id, 'sent'
    from sent s
  )
  select s.command_id into v_command_id
  from sent s;
  if v_command_id is null then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s, or it is revoked', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  perform fleet.audit(
    'command.sent', 'device:' || p_device_id,
    -- Not the payload, which may hold secrets and is kept for settings.commands_keep only.
    p_after => jsonb_build_object(
      'command_id', v_command_id, 'command', p_command, 'payload_sha256', encode(sha256(convert_to(p_payload::text, 'UTF8')), 'hex')
    )
  );
  return v_command_id;
end
$$;

comment on function fleet.send_command(bigint, text, jsonb) is
  'Sends a command to a device, which gets it at its next poll. Returns the command_id. '
  'Example: select fleet.send_command(42, ''set_volume'', ''{"percent":30}'');';
