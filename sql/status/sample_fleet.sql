create or replace function fleet.sample_fleet() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_at timestamptz := date_bin('10 minutes', now(), '2000-01-01Z');
  v_fleet record;
begin
  delete from fleet.fleet_samples s
  where s.sampled_at < now() - interval '8 days' or s.sampled_at > now();
  -- Nine times out of ten the row is already there, and no device is counted.
  if not exists (select from fleet.fleet_samples s where s.sampled_at = v_at) then
    select f.* into v_fleet from fleet.fleet_summary f where f.cohort = '(all)';
    insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
    values (
      v_at, v_fleet.devices, v_fleet.online, v_fleet.late, v_fleet.offline, v_fleet.new, v_fleet.clock_skewed, v_fleet.unity_down
    )
    on conflict do nothing;
  end if;
end
$$;

comment on function fleet.sample_fleet() is
  'Stores the counts of fleet.fleet_summary once every 10 minutes, for fleet.fleet_trend. Called every minute by '
  'fleet.mark_silent(). '
  'Example: select fleet.sample_fleet();';
