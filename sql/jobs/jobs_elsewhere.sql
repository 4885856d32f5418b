create or replace function fleet.jobs_elsewhere()
returns table (jobname text, statement text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The name contains this database: pg_cron identifies a job by name and role, which other stores of the cluster share.
  select d.jobname, case d.jobname
    -- The history is in the database of pg_cron.
    when 'fleet-prune-cron-history' then format(
      'select cron.schedule(%L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      format(
        '%swhere database = %L and (%s)',
        split_part(d.command, 'where', 1), current_database(), trim(split_part(d.command, 'where', 2))
      )
    )
    else format(
      'select cron.schedule_in_database(%L, %L, %L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      -- There, the statement is not updated each night, so partitions are left to autovacuum.
      case d.jobname when 'fleet-vacuum' then 'vacuum (analyze) fleet.device_last_status' else d.command end,
      current_database(), 'fleet_owner'
    )
  end
  from fleet.job_definitions() d
  where d.jobname <> 'fleet-freeze';
$$;

comment on function fleet.jobs_elsewhere() is
  'If pg_cron is in another database: the statement with which a superuser schedules each job there.';
