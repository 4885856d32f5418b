create or replace function fleet.jobs_elsewhere()
returns table (jobname text, statement text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Named after this database too: by name and role pg_cron tells jobs apart, and other stores of the cluster have the same of both.
  select d.jobname, case d.jobname
    -- Its history is where it is.
    when 'fleet-prune-cron-history' then format(
      'select cron.schedule(%L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      format('%swhere database = %L and (%s)', split_part(d.command, 'where', 1), current_database(), trim(split_part(d.command, 'where', 2)))
    )
    else format(
      'select cron.schedule_in_database(%L, %L, %L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      -- Nobody there names the partitions anew each night: they are left to autovacuum.
      case d.jobname when 'fleet-vacuum' then 'vacuum (analyze) fleet.device_last_status' else d.command end,
      current_database(), 'fleet_owner'
    )
  end
  from fleet.job_definitions() d
  where d.jobname <> 'fleet-freeze';
$$;

comment on function fleet.jobs_elsewhere() is
  'Where pg_cron lives in another database: the statement that schedules each job there, for a superuser.';
