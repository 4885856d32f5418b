create or replace function fleet.record_unreadable_fields(p_counts json) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.device_unreadable_fields as f (device_id, field, times, first_at, last_at, example)
  select r.device_id, r.field, r.times, now(), now(), r.example
  from json_to_recordset(p_counts) as r (device_id bigint, field text, times bigint, example text)
  join fleet.devices d using (device_id)  -- a gateway may name a device that does not exist
  order by r.device_id, r.field
  on conflict on constraint device_unreadable_fields_pkey do update
    set times = f.times + excluded.times,
      last_at = excluded.last_at,
      example = excluded.example;
end
$$;

comment on function fleet.record_unreadable_fields(json) is
  'Records fields that a server process could not read, by device; sent every 10 seconds. Example: select '
  'fleet.record_unreadable_fields(''[{"device_id":1,"field":"battery_pct","times":3,"example":"87.5"}]'');';
