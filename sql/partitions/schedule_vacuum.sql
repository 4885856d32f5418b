create or replace function fleet.schedule_vacuum() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    return 0;
  end if;
  return (select count(*) from fleet.schedule_jobs() j where j.jobname in ('fleet-vacuum', 'fleet-freeze'));
end
$$;

comment on function fleet.schedule_vacuum() is
  'Tells pg_cron which partitions to vacuum and to freeze next; returns the number of jobs, 0 if pg_cron is in another database. '
  'Run by fleet.nightly().';
