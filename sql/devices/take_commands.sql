create or replace function fleet.take_commands(p_device_id bigint)
returns table (command_id bigint, command text, payload jsonb, created_at timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    with waiting as materialized (
      select c.command_id, c.command, c.payload, c.created_at
      from fleet.device_commands c
      cross join fleet.settings s
      where c.device_id = p_device_id
        and c.acknowledged_at is null
        and c.created_at > now() - s.command_expires_after
      order by c.command_id
      limit 100  -- keeps the answer small; the rest follows once these are acknowledged
    ),
    logged as (
      insert into fleet.command_dispatch_log (device_id, command_id, event)
      select p_device_id, w.command_id, 'handed_over'
      from waiting w
    )
    select w.command_id, w.command, w.payload, w.created_at
    from waiting w
    order by w.command_id;
end
$$;

comment on function fleet.take_commands(bigint) is
  'Hands a device its commands, oldest first, at most 100, and logs that. A command is handed over again until it is '
  'acknowledged, because the answer may have been lost. '
  'Example: select * from fleet.take_commands(42);';
