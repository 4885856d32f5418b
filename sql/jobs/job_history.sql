create or replace function fleet.job_history()
returns table (
  jobname text, schedule text, max_age interval, is_active boolean, last_start timestamptz, last_status text, last_message text,
  last_success timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    -- Without a tick yet, the jobs are those of pg_cron in another database, of which nothing is known here.
    return query
      select d.jobname, d.schedule, d.max_age, case when exists (select from fleet.ticked_jobs) then true end,
        j.started_at, j.status, j.message, case when j.last_success <= clock_timestamp() then j.last_success end
      from fleet.job_definitions() d
      left join fleet.ticked_jobs j on j.jobname = d.jobname
      where d.jobname <> 'fleet-prune-cron-history' or not exists (select from fleet.ticked_jobs);
    return;
  end if;
  -- A success in the future was written while the clock ran ahead. The history has no index on jobid, so it is read once for all
  -- jobs.
  return query execute $history$
    select d.jobname, d.schedule, d.max_age, j.active, h.start_time, h.status, h.return_message, r.last_success
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user and j.database = current_database()
    left join (
      select o.jobid, max(o.runid) as runid, max(o.start_time)
          filter (where o.status = 'succeeded' and o.start_time <= clock_timestamp()) as last_success
      from cron.job_run_details o
      group by o.jobid
    ) r on r.jobid = j.jobid
    left join cron.job_run_details h on h.runid = r.runid
  $history$;
end
$$;

comment on function fleet.job_history() is
  'Each expected job with its last run and last success by pg_cron or npm run tick; null if neither runs it in this database.';
