create or replace function fleet.job_definitions()
returns table (jobname text, schedule text, max_age interval, command text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    -- Half an hour away from fleet-nightly, with which it shares a lock.
    ('fleet-maintain', '35 * * * *', interval '125 minutes', 'call fleet.maintain()'),
    ('fleet-nightly', '0 3 * * *', interval '25 hours', 'call fleet.nightly()'),
    ('fleet-reconcile', '5 * * * *', interval '125 minutes', 'select fleet.reconcile()'),
    ('fleet-mark-silent', '* * * * *', interval '5 minutes', 'call fleet.mark_silent()'),
    ('fleet-archive-wake', '*/10 * * * *', interval '25 minutes', 'select fleet.wake_archiver()'),
    ('fleet-erase', '*/5 * * * *', interval '25 minutes', 'call fleet.run_erasures()'),
    -- After two days nobody needs the successes of a job that runs each minute, and job_health reads the whole history.
    ('fleet-prune-cron-history', '20 4 * * *', interval '25 hours',
      $job$delete from cron.job_run_details
        where end_time < now() - interval '14 days'
          or (command = 'call fleet.mark_silent()' and status = 'succeeded' and end_time < now() - interval '2 days')$job$)
  union all
  -- VACUUM cannot run in a function, so the statement names the tables. Each night schedules it again.
  select 'fleet-vacuum', '45 3 * * *', interval '25 hours', coalesce(
    (
      -- Not fleet.attached_partitions(), which reads the bounds of all partitions: job_health is polled.
      select format('vacuum (analyze) %s', string_agg(format('fleet.%I', c.relname), ', ' order by p.range_start))
      from fleet.hb_partitions p
      join pg_inherits i on i.inhrelid = fleet.table_of(p) and i.inhparent = to_regclass('fleet.device_heartbeats')
      join pg_class c on c.oid = fleet.table_of(p)
      where p.range_end > now() - interval '7 days' and p.range_start <= now()
    ),
    'vacuum (analyze) fleet.device_last_status'
  )
  union all
  select 'fleet-freeze', '15 4 * * *', interval '25 hours', format(
    'vacuum (freeze, analyze) %s',
    string_agg(format('%I.%I', c.relnamespace::regnamespace, c.relname), ', ' order by p.range_start)
  )
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  -- Also retired partitions, which wait for their archive or archive_grace. cold_xid is null for a day that was retired young.
  where (p.state in ('active', 'restored') and age(c.relfrozenxid) > age(p.cold_xid)
      or p.state not in ('active', 'restored') and age(c.relfrozenxid) > coalesce(age(p.cold_xid), 1000000)
      -- CLUSTER has frozen the rows, but only VACUUM marks the pages, for index-only scans and so that no later VACUUM reads them.
      or p.settled_at is not null and c.relallvisible < c.relpages)
    and (c.relpages > 0 or fleet.has_pages(c.oid))
  having count(*) > 0;
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron (or npm run tick) runs for the store, with their schedules in GMT. A job is late when its last success is older than '
  'max_age. fleet-freeze is listed only while a cold or settled partition is not frozen yet.';
