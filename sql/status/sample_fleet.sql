create or replace function fleet.sample_fleet() returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  delete from fleet.fleet_samples s
  where s.sampled_at < now() - interval '8 days' or s.sampled_at > now();
  insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
  select date_bin('10 minutes', now(), '2000-01-01Z'), f.devices, f.online, f.late, f.offline, f.new, f.clock_skewed, f.unity_down
  from fleet.fleet_summary f
  where f.cohort = '(all)'
    -- Nine times out of ten the row is already there, and no device is counted.
    and not exists (select from fleet.fleet_samples s where s.sampled_at = date_bin('10 minutes', now(), '2000-01-01Z'))
  on conflict do nothing;
$$;

comment on function fleet.sample_fleet() is
  'Stores the counts of fleet.fleet_summary once every 10 minutes, for fleet.fleet_trend. Called every minute by '
  'fleet.mark_silent(). '
  'Example: select fleet.sample_fleet();';
