create or replace function fleet.set_premake(p_days integer) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old integer;
begin
  if p_days is null or p_days not between 1 and 90 then
    raise exception using
      errcode = 'FL422',
      message = format('premake %s is not between 1 and 90 days', coalesce(p_days::text, 'null')),
      hint = 'Example: select fleet.set_premake(14);';
  end if;
  select premake_days into strict v_old from fleet.settings for update;
  update fleet.settings
  set premake_days = p_days
  where premake_days is distinct from p_days;
  perform fleet.configure_partman();
  return format('premake %s days (was %s); the next hourly run creates missing partitions', p_days, v_old);
end
$$;

comment on function fleet.set_premake(integer) is
  'Sets how many days ahead partitions are created. Example: select fleet.set_premake(14);';
