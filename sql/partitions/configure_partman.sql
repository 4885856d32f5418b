create or replace function fleet.configure_partman() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_cadence text;
  v_premake integer;
  v_width text;
begin
  -- pg_partman counts partitions; the setting counts days.
  select s.cadence, case s.cadence when 'monthly' then ceil(s.premake_days / 28.0)::integer else s.premake_days end
  into v_cadence, v_premake
  from fleet.settings s;
  v_width := case v_cadence when 'monthly' then '1 month' else '1 day' end;
  update partman.part_config c
  set partition_interval = v_width, premake = v_premake
  where c.parent_table = 'fleet.device_heartbeats'
    and (c.partition_interval::interval <> v_width::interval or c.premake <> v_premake);
end
$$;

comment on function fleet.configure_partman() is 'Passes settings.cadence and settings.premake_days on to pg_partman.';
