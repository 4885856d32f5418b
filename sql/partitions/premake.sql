create or replace function fleet.premake(p_now timestamptz default now()) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
  v_from date;
  v_to date;
begin
  perform fleet.note_columns();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));
  select
    greatest(
      (p_now - s.retention)::date,
      coalesce((select min(a.range_start)::date from fleet.attached_partitions() a), p_now::date)
    ),
    p_now::date + s.premake_days
  into strict v_from, v_to
  from fleet.settings s;

  -- Right after a change of cadence the last partition has the old width, and run_maintenance would miscount.
  if (
    select a.range_end = a.range_start + c.partition_interval::interval
    from fleet.attached_partitions() a
    cross join partman.part_config c
    where c.parent_table = 'fleet.device_heartbeats'
    order by a.range_start desc
    limit 1
  ) then
    perform partman.run_maintenance(p_parent_table => 'fleet.device_heartbeats', p_analyze => false, p_jobmon => false);
  end if;

  -- run_maintenance adds partitions only after the last one, uses the real clock, and reports success when it is already running
  -- elsewhere. Whatever is still missing is created here, including days that a long outage left out, for devices that send late.
  perform fleet.add_partitions(v_from, v_to);

  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.premake(timestamptz) is
  'Creates the partitions up to premake_days ahead, and those that are missing within the retention, and returns their names. '
  'Run by fleet.maintain().';
