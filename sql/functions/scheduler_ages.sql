-- Not by fleet.job_history(), which reads the whole history for the last success of each job: too much for a scrape.
create or replace function fleet.scheduler_ages()
returns table (jobname text, age interval)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_setup timestamptz := (select min(p.created_at) from fleet.hb_partitions p);
  v_known text[] := array[]::text[];
begin
  if exists (select from pg_extension where extname = 'pg_cron') then
    for jobname, age in execute $jobs$
      select j.jobname,
        now() - coalesce((select d.start_time from cron.job_run_details d where d.jobid = j.jobid order by d.runid desc limit 1), $1)
      from cron.job j
      where j.jobname like 'fleet-%' and j.username = current_user
    $jobs$ using v_setup loop
      v_known := v_known || jobname;
      return next;
    end loop;
  end if;
  -- Where pg_cron works in another database, or lost a job: by what the jobs leave here.
  return query
    select w.jobname, now() - coalesce((select max(e.at) from fleet.events e where e.event = w.event), v_setup)
    from (
      values
        ('fleet-maintain', 'maintain.start'), ('fleet-nightly', 'nightly.start'), ('fleet-reconcile', 'reconciliation.completed')
    ) as w (jobname, event)
    where w.jobname <> all (v_known);
end
$$;

comment on function fleet.scheduler_ages() is
  'How long ago each job of the store began; since setup while it never has. For /metrics.';
