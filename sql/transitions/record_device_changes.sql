create or replace function fleet.record_device_changes() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  insert into fleet.changed_devices (device_id)
  select n.device_id
  from changed n
  join was o using (device_id)
  where n.heartbeat_interval <> o.heartbeat_interval or n.revoked_at is distinct from o.revoked_at
  on conflict do nothing;
  return null;
end
$$;

comment on function fleet.record_device_changes() is
  'Trigger on fleet.devices: remembers the devices that were revoked or have another interval, for fleet.note_changed_devices().';
