create or replace function fleet.note_device() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.note_transitions(array[new.device_id], now());
  return null;
end
$$;

comment on function fleet.note_device() is
  'Trigger on fleet.devices: notes that a device was revoked, or is no longer.';
