-- See fleet.attached_partitions() for the 0.
create or replace function fleet.has_bounds(p_table oid, p_range_start timestamptz, p_range_end timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
as $$
  select exists (
    select from pg_class c
    join pg_inherits i on i.inhrelid = c.oid and i.inhparent = to_regclass('fleet.device_heartbeats')
    where c.oid = p_table
      and pg_get_expr(c.relpartbound, 0) = format('FOR VALUES FROM (%L) TO (%L)', p_range_start, p_range_end)
  );
$$;

comment on function fleet.has_bounds(oid, timestamptz, timestamptz) is
  'Whether a table is attached to fleet.device_heartbeats with exactly these bounds.';
