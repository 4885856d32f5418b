create or replace function fleet.record_intervals() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.changed_intervals (device_id)
  select n.device_id
  from changed n
  join was o using (device_id)
  where n.heartbeat_interval <> o.heartbeat_interval
  on conflict do nothing;
  return null;
end
$$;

comment on function fleet.record_intervals() is
  'Trigger on fleet.devices: remembers the devices whose interval was changed, for fleet.note_intervals().';
