create or replace function fleet.set_up_partitions(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_settings fleet.settings;
  v_partman_major integer;
  v_interval text;
  v_first date;
begin
  select * into strict v_settings from fleet.settings;
  select split_part(extversion, '.', 1)::integer into v_partman_major
  from pg_extension
  where extname = 'pg_partman';
  if v_partman_major is null then
    raise exception using
      errcode = 'FL002',
      message = 'pg_partman is not installed in this database',
      hint = 'Run sql/setup/extensions.sql as a superuser, or: create extension pg_partman schema partman;';
  end if;
  if exists (select from partman.part_config where parent_table = 'fleet.device_heartbeats') then
    return 0;
  end if;

  v_interval := case v_settings.cadence when 'monthly' then '1 month' else '1 day' end;
  v_first := (p_now - v_settings.retention)::date;
  execute format(
    $call$
      select partman.%I(
        p_parent_table => $1, p_control => 'ts', p_interval => $2, p_premake => $3, p_start_partition => $4,
        p_template_table => $5, p_jobmon => false, %s
      )
    $call$,
    -- create_parent() is its name before 5.4.
    case when exists (
      select from pg_proc p where p.proname = 'create_partition' and p.pronamespace = 'partman'::regnamespace
    ) then 'create_partition' else 'create_parent' end,
    case when v_partman_major >= 5 then 'p_type => ''range'', p_default_table => false' else 'p_type => ''native''' end
  ) using 'fleet.device_heartbeats', v_interval, v_settings.premake_days, v_first::text, 'fleet.device_heartbeats_template';
  if v_partman_major < 5 then
    -- Rows in a default partition would block premake and retention; fleet.ingest() quarantines them instead.
    drop table fleet.device_heartbeats_default;
  end if;

  update partman.part_config
  set infinite_time_partitions = true,  -- otherwise an idle fleet would get no new partitions
    inherit_privileges = true,
    retention = null,  -- fleet.nightly() retires partitions, each in its own transaction
    retention_schema = 'fleet_detached',
    retention_keep_table = true
  where parent_table = 'fleet.device_heartbeats';

  return fleet.sync_partitions();
end
$$;

comment on function fleet.set_up_partitions(timestamptz) is
  'Puts fleet.device_heartbeats under the control of pg_partman (4.7 or later), with partitions for the retention and premake_days '
  'ahead, and without a default partition. Returns how many partitions it created; 0 if this was done before.';
