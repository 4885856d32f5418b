create or replace function fleet.end_job(p_jobname text, p_error text default null) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.ticked_jobs j
  set status = case when p_error is null then 'succeeded' else 'failed' end,
    message = left(p_error, 1000),
    last_success = case when p_error is null then j.started_at else j.last_success end
  where j.jobname = p_jobname;
  perform pg_advisory_unlock(fleet.job_lock(p_jobname));
end
$$;

comment on function fleet.end_job(text, text) is
  'Records how a job ended that this session began with fleet.begin_job(), and lets others begin it.';
