-- Does not use fleet.job_history(): it reads the whole history for the last success of each job, which is too much for a scrape.
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
      select j.jobname, now() - greatest(d.start_time, fleet.postgres_started_at())
      from cron.job j
      cross join lateral (
        select h.start_time
        from cron.job_run_details h
        where h.jobid = j.jobid and h.start_time <= now()  -- a later one was written while the clock ran ahead
        order by h.runid desc
        limit 1
      ) d
      where j.jobname like 'fleet-%' and j.username = current_user and d.start_time is not null
    $jobs$ loop
      v_known := v_known || jobname;
      return next;
    end loop;
  else
    for jobname, age in
      select j.jobname, now() - greatest(j.started_at, fleet.postgres_started_at())
      from fleet.ticked_jobs j
      where j.started_at <= now()
    loop
      v_known := v_known || jobname;
      return next;
    end loop;
  end if;
  -- If pg_cron is in another database, or lost a job or its history, the events of the jobs give their ages. These jobs have been
  -- there since setup, so one that never ran is as old as the store.
  return query
    select w.jobname, now() - coalesce(
      case when l.at is not null then greatest(l.at, fleet.postgres_started_at()) end,
      v_setup
    )
    from (
      values
        ('fleet-maintain', 'maintain.start'), ('fleet-nightly', 'nightly.start'), ('fleet-reconcile', 'reconciliation.completed')
    ) as w (jobname, event)
    cross join lateral (select max(e.at) as at from fleet.events e where e.event = w.event and e.at <= now()) l
    where w.jobname <> all (v_known);
end
$$;

comment on function fleet.scheduler_ages() is
  'How long ago each job of the store began, or Postgres started if that was later. If maintain, nightly or reconcile has never '
  'begun, the time since setup. For /metrics.';
