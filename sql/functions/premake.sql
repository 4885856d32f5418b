create or replace function fleet.premake(p_now timestamptz default now()) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_today date := p_now::date;
  v_known text[];
  v_premake_days integer;
begin
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));
  select premake_days into strict v_premake_days from fleet.settings;

  perform partman.run_maintenance(p_parent_table => 'fleet.device_heartbeats', p_analyze => false, p_jobmon => false);

  -- run_maintenance only adds at the far end, by the real clock, and reports "already running" as success:
  -- what is still missing is made by name.
  perform fleet.create_partitions(v_today, v_today + v_premake_days);

  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.premake(timestamptz) is
  'Makes the partitions from today to premake_days ahead, holes included, and returns their names. Run by fleet.maintain().';
