create or replace function fleet.schedule_jobs()
returns table (jobname text, schedule text, command text, is_scheduled boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_jobs constant text :=
    'select jsonb_object_agg(j.jobname, j.schedule || '' '' || j.command) from cron.job j
    where j.jobname like ''fleet-%'' and j.username = current_user';
  v_job record;
  v_before jsonb;
  v_after jsonb;
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    for v_job in select * from fleet.jobs_elsewhere() loop
      raise notice using
        message = format('job %s is not scheduled: pg_cron is not in this database', v_job.jobname),
        hint = format(
          'As superuser, in the database of pg_cron (cron.database_name, %s): %s',
          -- Not current_setting(), which fails for roles that may not see the setting.
          coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'unknown here'), v_job.statement
        );
    end loop;
    return query select d.jobname, d.schedule, d.command, false from fleet.job_definitions() d;
    return;
  end if;

  execute c_jobs into v_before;
  -- By name, so that a second call changes nothing. The store's jobs that are no longer defined are removed.
  execute $jobs$
    select cron.unschedule(j.jobid)
    from cron.job j
    where j.jobname like 'fleet-%' and j.username = current_user
      and case
        -- They came with a dump of a database with another name or port and still connect there. schedule() changes neither.
        when (j.database, j.nodeport) <> (current_database(), current_setting('port')::integer) then
          j.jobname in (select d.jobname from fleet.job_definitions() d)
        else j.jobname not in (select d.jobname from fleet.job_definitions() d)
      end
  $jobs$;
  for v_job in select * from fleet.job_definitions() loop
    execute 'select cron.schedule($1, $2, $3)' using v_job.jobname, v_job.schedule, v_job.command;
  end loop;
  execute c_jobs into v_after;
  if v_after is distinct from v_before then
    perform fleet.audit('jobs.scheduled', 'jobs:pg_cron', v_before, v_after);
  end if;
  -- A job that somebody has disabled stays so.
  return query execute $active$
    select d.jobname, d.schedule, d.command, j.active
    from fleet.job_definitions() d
    join cron.job j on j.jobname = d.jobname and j.username = current_user
  $active$;
end
$$;

comment on function fleet.schedule_jobs() is
  'Schedules the jobs of fleet.job_definitions() with pg_cron, as their owner; may be called again. is_scheduled is false for one '
  'that is disabled, which stays so. If pg_cron is in another database, notices say what to run there. Example: select * from fleet.schedule_jobs();';
