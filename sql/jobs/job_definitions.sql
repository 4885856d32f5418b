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
    -- That a job of each minute succeeded is of no use after two days, and job_health reads it all.
    ('fleet-prune-cron-history', '20 4 * * *',
      $job$delete from cron.job_run_details
        where end_time < now() - interval '14 days'
          or (command = 'call fleet.mark_silent()' and status = 'succeeded' and end_time < now() - interval '2 days')$job$)
  union all
  -- VACUUM cannot run in a function: a statement that names the tables, made anew by each night.
  select 'fleet-vacuum', '45 3 * * *', coalesce(
    (
      -- Not by fleet.attached_partitions(), which reads the bounds of all: job_health is polled.
      select format('vacuum (analyze) %s', string_agg(format('fleet.%I', c.relname), ', ' order by p.range_start))
      from fleet.hb_partitions p
      join pg_inherits i on i.inhrelid = fleet.table_of(p) and i.inhparent = to_regclass('fleet.device_heartbeats')
      join pg_class c on c.oid = fleet.table_of(p)
      where p.range_end > now() - interval '7 days' and p.range_start <= now()
    ),
    'vacuum (analyze) fleet.device_last_status'
  )
  union all
  select 'fleet-freeze', '15 4 * * *',
    format('vacuum (freeze, analyze) %s', string_agg(format('%I.%I', c.relnamespace::regnamespace, c.relname), ', ' order by p.range_start))
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  -- Also retired partitions, which wait for their archive or for archive_grace. cold_xid is null for a day that was retired while young.
  where (p.state in ('active', 'restored') and age(c.relfrozenxid) > age(p.cold_xid)
      or p.state not in ('active', 'restored') and age(c.relfrozenxid) > coalesce(age(p.cold_xid), 1000000))
    and pg_relation_size(c.oid) > 0
  having count(*) > 0;
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron has to run for the store, with their schedules in GMT. fleet-freeze is among them while a cold partition is not frozen yet.';
