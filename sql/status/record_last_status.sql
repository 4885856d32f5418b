-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The clock, not now(): heartbeats that fleet.roll_up() does not wait for have to be recorded as late.
  v_today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
  v_rows bigint;
  v_changed bigint[];
begin
  with late as (
    insert into fleet.late_arrivals (device_id, day)
    select distinct n.device_id, (n.ts at time zone 'UTC')::date
    from new_rows n
    where n.ts < v_today
  ),
  newest as (
    select distinct on (r.device_id) r.*, r.ts as stored_ts
    from new_rows r
    order by r.device_id, r.ts desc
  )
--!include status/upsert_last_status.inc.sql
  -- These rows are locked already: the upsert locks those too that it leaves as they are.
  if v_rows < (select count(*) from new_rows) then
    perform fleet.record_arrivals(array_agg(n.device_id), array_agg(n.received_at), array_agg(n.ts))
    from (select r.device_id, max(r.received_at) as received_at, max(r.ts) as ts from new_rows r group by r.device_id) n;
  end if;
  return null;
end
$$;

comment on function fleet.record_last_status() is
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device, records there when '
  'a device was heard from whose heartbeats are older, and records heartbeats of past days in fleet.late_arrivals.';
