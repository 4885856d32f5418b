-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500. In device_id order, because otherwise concurrent
-- batches of the same devices deadlock.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The clock, not now(): heartbeats that fleet.roll_up() does not wait for have to be recorded as late.
  v_today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
begin
  with late as (
    insert into fleet.late_arrivals (device_id, day)
    select distinct n.device_id, (n.ts at time zone 'UTC')::date
    from new_rows n
    where n.ts < v_today
  )
  insert into fleet.device_last_status as ls (
    device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra,
    status, is_silent
  )
  select distinct on (n.device_id)
    n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip, n.extra,
    case when n.unity_running is false then 'unity_down' else 'ok' end,
    -- A fresh heartbeat removes the mark, a buffered old one does not. The value rarely changes, so the update stays HOT.
    n.ts < now() - interval '2 minutes'
  from new_rows n
  order by n.device_id, n.ts desc
  on conflict (device_id) do update
    set last_ts = excluded.last_ts,
      last_received_at = excluded.last_received_at,
      battery_pct = excluded.battery_pct,
      network_type = excluded.network_type,
      unity_running = excluded.unity_running,
      signal_dbm = excluded.signal_dbm,
      agent_version = excluded.agent_version,
      ip = excluded.ip,
      extra = excluded.extra,
      status = excluded.status,
      is_silent = excluded.is_silent
    -- A late arrival must not rewind a device.
    where ls.last_ts is null or ls.last_ts < excluded.last_ts;
  return null;
end
$$;

comment on function fleet.record_last_status() is
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device, and records '
  'heartbeats of past days in fleet.late_arrivals.';
