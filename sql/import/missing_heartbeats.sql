create or replace function fleet.missing_heartbeats(a fleet.imports, p_from timestamptz, p_to timestamptz)
returns setof fleet.device_heartbeats
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with given as materialized (
    select (r.beat).device_id, fleet.heartbeat_bucket((r.beat).ts) as bucket
    from fleet.import_ranges g
    cross join lateral fleet.read_source(a, g.first_block, g.last_block) r
    where g.source = a.source and g.first_ts < p_to and g.last_ts >= p_from and r.reason is null
  )
  select h.*
  from fleet.device_heartbeats h
  where h.ts >= p_from and h.ts < p_to
    and h.received_at >= a.started_at
    and not exists (
      select from given g
      where g.device_id = h.device_id and g.bucket = fleet.heartbeat_bucket(h.ts)
    );
$$;

comment on function fleet.missing_heartbeats(fleet.imports, timestamptz, timestamptz) is
  'The heartbeats of a time range that the store has received since the import of a table began and for whose device and '
  '10-second bucket the table has no row.';
