create or replace function fleet.beats_before(p_device_id bigint, p_heard_at timestamptz, p_limit integer default 30)
returns table (
  ts timestamptz, battery_pct smallint, signal_dbm smallint, next_in_s integer, stopping text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select h.ts, h.battery_pct, h.signal_dbm, h.next_in_s, h.stopping
  from fleet.device_heartbeats h
  where h.device_id = p_device_id
    and h.ts > p_heard_at - interval '1 hour' and h.ts <= p_heard_at + (select s.max_future from fleet.settings s)
    and h.received_at <= p_heard_at
  order by h.ts desc
  limit p_limit;
$$;

comment on function fleet.beats_before(bigint, timestamptz, integer) is
  'The newest heartbeats of a device that had arrived at a given time and were at most an hour old then, newest first. '
  'Example: select * from fleet.beats_before(42, now());';
