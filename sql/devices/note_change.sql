create or replace function fleet.note_change() returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  new.changed_at := now();
  return new;
end
$$;

comment on function fleet.note_change() is
  'Trigger on fleet.devices: notes when the token, the cohort or the interval of a device was changed, because '
  'fleet.check_devices() judges only what it sent since.';
