-- The only function that knows how the calls to create partitions differ between pg_partman 4 and 5.
create or replace function fleet.ensure_partitions(p_starts timestamptz[], p_width interval) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partman_major integer;
  v_interval text;
begin
  if cardinality(p_starts) = 0 then
    return;
  end if;
  select split_part(extversion, '.', 1)::integer into v_partman_major
  from pg_extension
  where extname = 'pg_partman';

  -- pg_partman creates only partitions of its configured width. After a change of cadence both widths may be needed.
  select partition_interval into strict v_interval
  from partman.part_config
  where parent_table = 'fleet.device_heartbeats'
  for update;
  if v_interval::interval <> p_width then
    update partman.part_config set partition_interval = p_width::text where parent_table = 'fleet.device_heartbeats';
  end if;
  if v_partman_major >= 5 then
    perform partman.create_partition_time(p_parent_table => 'fleet.device_heartbeats', p_partition_times => p_starts);
  else
    -- Otherwise 4.7 would ANALYZE the whole parent afterwards.
    execute 'select partman.create_partition_time(p_parent_table => $1, p_partition_times => $2, p_analyze => false)'
    using 'fleet.device_heartbeats', p_starts;
  end if;
  if v_interval::interval <> p_width then
    update partman.part_config set partition_interval = v_interval where parent_table = 'fleet.device_heartbeats';
  end if;
end
$$;

comment on function fleet.ensure_partitions(timestamptz[], interval) is
  'Has pg_partman create the partitions of one width that begin at these times; existing ones are left alone.';
