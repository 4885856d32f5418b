-- Not with a generic plan: Citus has none for a statement with a parameter in its limit.
create or replace function fleet.beats_before(p_device_id bigint, p_heard_at timestamptz, p_limit integer default 30)
returns table (
  ts timestamptz, battery_pct smallint, signal_dbm smallint, next_in_s integer, stopping text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_custom_plan
as $$
declare
  v_from timestamptz;
  v_until timestamptz;
begin
  -- The clock of the device may lag.
  select p_heard_at - s.max_late, p_heard_at + s.max_future into v_from, v_until from fleet.settings s;
  return query
    select b.ts, b.battery_pct, b.signal_dbm, b.next_in_s, b.stopping
    from (
      select h.ts, h.received_at, h.battery_pct, h.signal_dbm, h.next_in_s, h.stopping
      from fleet.device_heartbeats h
      where h.device_id = p_device_id and h.ts > v_from and h.ts <= v_until and h.received_at <= p_heard_at
      order by h.ts desc
      limit p_limit
    ) b
    where b.received_at > p_heard_at - interval '1 hour';
end
$$;

comment on function fleet.beats_before(bigint, timestamptz, integer) is
  'The form of fleet.beats_before() for a distributed store: the newest heartbeats of a device that had arrived at a given time, in the '
  'hour before it, newest first.';
