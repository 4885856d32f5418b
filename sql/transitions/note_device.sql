create or replace function fleet.note_device() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if new.heartbeat_interval <> old.heartbeat_interval then
    update fleet.device_last_status
    set late_after_s = floor(extract(epoch from fleet.late_after(new.heartbeat_interval)))
    where device_id = new.device_id;
  end if;
  if new.revoked_at is distinct from old.revoked_at then
    perform fleet.note_transitions(array[new.device_id], now());
  end if;
  return null;
end
$$;

comment on function fleet.note_device() is
  'Trigger on fleet.devices: notes that a device was revoked, or is no longer, and keeps device_last_status.late_after_s.';
