create or replace function fleet.known_devices(p_device_ids bigint[])
returns table (device_id bigint, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.device_id, extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
  from fleet.devices d
  left join fleet.cohorts c on c.cohort = d.cohort
  where d.device_id = any (p_device_ids) and d.revoked_at is null;
$$;

comment on function fleet.known_devices(bigint[]) is
  'Returns those of the given devices that are enrolled and not revoked: a gateway may send heartbeats only for these.';
