create or replace function fleet.job_history()
returns table (
  jobname text, schedule text, is_active boolean, last_start timestamptz, last_status text, last_message text,
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
    return query
      select d.jobname, d.schedule, null::boolean, null::timestamptz, null::text, null::text, null::timestamptz
      from fleet.job_definitions() d;
    return;
  end if;
  return query execute $history$
    select d.jobname, d.schedule, j.active, r.start_time, r.status, r.return_message,
      (
        select max(o.start_time) from cron.job_run_details o where o.jobid = j.jobid and o.status = 'succeeded'
      )
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user
    left join lateral (
      select h.start_time, h.status, h.return_message
      from cron.job_run_details h
      where h.jobid = j.jobid
      order by h.runid desc
      limit 1
    ) r on true
  $history$;
end
$$;

comment on function fleet.job_history() is
  'Each expected pg_cron job with its last run and last success; nulls where it is not scheduled in this database.';
