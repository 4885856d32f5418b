create or replace function fleet.add_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids bigint[];
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  v_ids := array(select c.device_id from changed c);
  insert into fleet.device_last_status (device_id, is_silent, noted_status, noted_since, late_after_s)
  select d.device_id, false, case when d.revoked_at is null then 'new' else 'revoked' end, coalesce(d.revoked_at, now()),
    floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))
  from fleet.devices d
  where d.device_id = any (v_ids)
  order by d.device_id
  on conflict do nothing;
  return null;
end
$$;

comment on function fleet.add_last_status() is
  'Trigger on fleet.devices and fleet.device_last_status: each device has a row of last status, also before its first heartbeat, '
  'however it was enrolled. So devices without a heartbeat are found by an index.';
