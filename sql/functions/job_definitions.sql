create or replace function fleet.job_definitions()
returns table (jobname text, schedule text, command text)
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  values
    -- Half an hour away from the night, with which it shares a lock.
    ('fleet-maintain', '35 * * * *', 'call fleet.maintain()'),
    ('fleet-nightly', '0 3 * * *', 'call fleet.nightly()'),
    ('fleet-reconcile', '5 * * * *', 'select fleet.reconcile()'),
    ('fleet-archive-wake', '*/10 * * * *', 'select fleet.wake_archiver()'),
    ('fleet-prune-cron-history', '20 4 * * *',
      $job$delete from cron.job_run_details where end_time < now() - interval '14 days'$job$);
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron has to run for the store, with their schedules in GMT.';
