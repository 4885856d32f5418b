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
  select b.ts, b.battery_pct, b.signal_dbm, b.next_in_s, b.stopping
  from (
    select h.*
    from fleet.device_heartbeats h
    where h.device_id = p_device_id
      -- The clock of the device may lag.
      and h.ts > p_heard_at - (select s.max_late from fleet.settings s)
      and h.ts <= p_heard_at + (select s.max_future from fleet.settings s)
      and h.received_at <= p_heard_at
    order by h.ts desc
    limit p_limit
  ) b
  where b.received_at > p_heard_at - interval '1 hour';
$$;

comment on function fleet.beats_before(bigint, timestamptz, integer) is
  'The newest heartbeats of a device that had arrived at a given time, in the hour before it, newest first. '
  'Example: select * from fleet.beats_before(42, now());';
