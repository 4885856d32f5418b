-- The catalog alone decides what is a partition. Names are not parsed, because pg_partman 4 and 5 name partitions differently.
-- With the oid of the table, pg_get_expr() would lock it, and wait for a partition that is being settled.
create or replace function fleet.attached_partitions()
returns table (relid oid, partition_name text, range_start timestamptz, range_end timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
as $$
  select c.oid, c.relname::text, b.bounds[1]::timestamptz, b.bounds[2]::timestamptz
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  cross join lateral (
    select regexp_match(pg_get_expr(c.relpartbound, 0), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') as bounds
  ) b
  where i.inhparent = to_regclass('fleet.device_heartbeats')
    and b.bounds is not null
  order by 3;
$$;

comment on function fleet.attached_partitions() is
  'The partitions that are attached to fleet.device_heartbeats, with their bounds, from the catalog.';
