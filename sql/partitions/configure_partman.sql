create or replace function fleet.configure_partman() returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update partman.part_config c
  set partition_interval = w.width,
    -- pg_partman counts partitions; the setting counts days.
    premake = w.premake
  from fleet.settings s
  cross join lateral (
    select case s.cadence when 'monthly' then '1 month' else '1 day' end as width,
      case s.cadence when 'monthly' then ceil(s.premake_days / 28.0)::integer else s.premake_days end as premake
  ) w
  where c.parent_table = 'fleet.device_heartbeats'
    and (c.partition_interval::interval <> w.width::interval or c.premake <> w.premake);
$$;

comment on function fleet.configure_partman() is 'Passes settings.cadence and settings.premake_days on to pg_partman.';
