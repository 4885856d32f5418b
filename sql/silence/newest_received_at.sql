create or replace function fleet.newest_received_at(p_now timestamptz) returns timestamptz
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
begin
  return (
    select coalesce(
      (
        select k.newest_received_at
        from fleet.fleet_counts k
        cross join fleet.settings s
        where k.place = 1 and fleet.counts_hold(p_now) and p_now - k.newest_received_at <= s.ingest_gap
      ),
      (
        select max(ls.last_received_at)
        from fleet.device_last_status ls
        -- It may have arrived after this transaction began. In a subquery, the clock is read once and not for each device.
        where ls.last_received_at <= (select greatest(p_now, clock_timestamp()))
      )
    )
  );
end
$$;

comment on function fleet.newest_received_at(timestamptz) is
  'When the newest heartbeat before this time arrived. In a large fleet it is taken from fleet.fleet_counts if it shows that '
  'ingest is not down; then a newer one may have arrived since. Example: select fleet.newest_received_at(now());';
