create or replace function fleet.begin_job(p_jobname text, p_due timestamptz) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_command text := (select d.command from fleet.job_definitions() d where d.jobname = p_jobname);
  v_key bigint := fleet.job_lock(p_jobname);
begin
  if exists (select from pg_extension where extname = 'pg_cron') then
    raise exception using
      errcode = 'FL409',
      message = 'pg_cron runs the jobs of this database',
      hint = 'npm run tick is for a Postgres without pg_cron. If pg_cron does not work here: select * from fleet.check();';
  end if;
  if v_command is null then
    raise exception using
      errcode = 'FL404',
      message = format('there is no job %s', coalesce(p_jobname, 'null')),
      hint = 'The jobs: select * from fleet.job_definitions();';
  end if;
  -- The lock of a session, because the job has transactions of its own. It also ends with a session that is lost.
  if not pg_try_advisory_lock(v_key) then
    return null;
  end if;
  insert into fleet.ticked_jobs as j (jobname, started_at, status)
  values (p_jobname, clock_timestamp(), 'running')
  on conflict (jobname) do update
    set started_at = excluded.started_at, status = excluded.status, message = null
    -- A later start was written while the clock ran ahead.
    where j.started_at < p_due or j.started_at > clock_timestamp();
  if not found then
    perform pg_advisory_unlock(v_key);
    return null;
  end if;
  return v_command;
end
$$;

comment on function fleet.begin_job(text, timestamptz) is
  'Claims a job of fleet.job_definitions() for this session, if it has not begun since it was due and runs in no other session. '
  'Returns the statement to run, or null. Then call fleet.end_job(). For npm run tick, where there is no pg_cron.';
