create or replace function fleet.set_retention(p_retention interval) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval;
  v_retire bigint;
begin
  if p_retention is null or p_retention < interval '1 day' or p_retention > interval '3650 days' then
    raise exception using
      errcode = 'FL422',
      message = format('retention %s is not between 1 day and 3650 days', coalesce(p_retention::text, 'null')),
      hint = 'Example: select fleet.set_retention(''60 days''); see first: select * from fleet.retention_plan(''60 days'');';
  end if;
  select retention into strict v_old from fleet.settings for update;
  update fleet.settings
  set retention = p_retention
  where retention is distinct from p_retention;
  select count(*) into v_retire from fleet.retention_plan(p_retention) where action = 'retire';
  return format('retention %s (was %s); the next nightly run retires %s partitions', p_retention, v_old, v_retire);
end
$$;

comment on function fleet.set_retention(interval) is
  'Sets how long heartbeats stay online, for the next nightly run, and says how many partitions that run will retire. '
  'Example: select fleet.set_retention(''60 days'');';
