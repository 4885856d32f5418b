--! Previous: sha1:c342bba79b6d0a57a7590f2a136743f9f7628f1e
--! Hash: sha1:aa49662b862f06391067aafdac405b6a1d0cd32f
--! Message: the history of jobs is read once

-- Enter migration here
--! Included functions/job_definitions.sql
create or replace function fleet.job_definitions()
returns table (jobname text, schedule text, command text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    -- Half an hour away from the night, with which it shares a lock.
    ('fleet-maintain', '35 * * * *', 'call fleet.maintain()'),
    ('fleet-nightly', '0 3 * * *', 'call fleet.nightly()'),
    ('fleet-reconcile', '5 * * * *', 'select fleet.reconcile()'),
    ('fleet-mark-silent', '* * * * *', 'call fleet.mark_silent()'),
    ('fleet-archive-wake', '*/10 * * * *', 'select fleet.wake_archiver()'),
    ('fleet-prune-cron-history', '20 4 * * *',
      $job$delete from cron.job_run_details where end_time < now() - interval '14 days'$job$)
  union all
  -- VACUUM cannot run in a function: a statement that names the tables, made anew by each night.
  select 'fleet-vacuum', '45 3 * * *', coalesce(
    (
      -- Not by fleet.attached_partitions(), which reads the bounds of all: job_health is polled.
      select format('vacuum (analyze) %s', string_agg(format('fleet.%I', c.relname), ', ' order by p.range_start))
      from fleet.hb_partitions p
      join pg_inherits i on i.inhrelid = p.relid and i.inhparent = to_regclass('fleet.device_heartbeats')
      join pg_class c on c.oid = p.relid
      where p.range_end > now() - interval '7 days' and p.range_start <= now()
    ),
    'vacuum (analyze) fleet.device_last_status'
  )
  union all
  select 'fleet-freeze', '15 4 * * *',
    format('vacuum (freeze, analyze) %s', string_agg(format('fleet.%I', p.partition_name), ', ' order by p.range_start))
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where p.state in ('active', 'restored')
    and age(c.relfrozenxid) > age(p.cold_xid)
    and pg_relation_size(c.oid) > 0
  having count(*) > 0;
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron has to run for the store, with their schedules in GMT. fleet-freeze is among them while a cold partition is not frozen yet.';
--! EndIncluded functions/job_definitions.sql
--! Included functions/job_history.sql
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
  -- The history has no index on jobid: it is read once for all jobs, not once for each.
  return query execute $history$
    select d.jobname, d.schedule, j.active, h.start_time, h.status, h.return_message, r.last_success
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user
    left join (
      select o.jobid, max(o.runid) as runid, max(o.start_time) filter (where o.status = 'succeeded') as last_success
      from cron.job_run_details o
      group by o.jobid
    ) r on r.jobid = j.jobid
    left join cron.job_run_details h on h.runid = r.runid
  $history$;
end
$$;

comment on function fleet.job_history() is
  'Each expected pg_cron job with its last run and last success; nulls where it is not scheduled in this database.';
--! EndIncluded functions/job_history.sql
