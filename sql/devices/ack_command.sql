create or replace function fleet.ack_command(p_device_id bigint, p_command_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  with acknowledged as (
    update fleet.device_commands
    set acknowledged_at = now()
    where device_id = p_device_id and command_id = p_command_id and acknowledged_at is null
    returning device_id, command_id
  )
  insert into fleet.command_dispatch_log (device_id, command_id, event)
  select a.device_id, a.command_id, 'acknowledged'
  from acknowledged a;
  if found then
    return true;
  end if;
  if not exists (select 1 from fleet.device_commands where device_id = p_device_id and command_id = p_command_id) then
    raise exception using
      errcode = 'FL404',
      message = format('device %s has no command %s', coalesce(p_device_id::text, 'null'), coalesce(p_command_id::text, 'null')),
      hint = 'Check the command_id. Commands are deleted after settings.commands_keep.';
  end if;
  return false;
end
$$;

comment on function fleet.ack_command(bigint, bigint) is
  'Records that a device has received a command, which is then not handed over again. Returns false if it was already '
  'acknowledged. '
  'Example: select fleet.ack_command(42, 7);';
