create or replace function fleet.metric_values()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.counter, '{}'::jsonb, c.total::double precision
  from fleet.counters c
  union all
  select 'partition_premake_runway_days', '{}',
    greatest(0, extract(epoch from coalesce(max(a.range_end), now()) - now()) / 86400)::double precision
  from fleet.attached_partitions() a
  union all
  select 'retention_lag_days', '{}',
    greatest(0, coalesce(max(extract(epoch from now() - s.retention - p.range_end)), 0) / 86400)::double precision
  from fleet.settings s
  left join fleet.hb_partitions p on p.state = 'active' and p.held_reason is null
    and p.range_end <= coalesce((select min(h.since) from fleet.adoption_holds() h), 'infinity')
  union all
  select 'archive_backlog_partitions', '{}', count(*)::double precision
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving', 'archive_failed')
  union all
  select 'archiver_heartbeat_age_seconds', '{}', extract(epoch from now() - max(a.last_seen_at))::double precision
  from fleet.archivers a
  having count(*) > 0
  union all
  select 'scheduler_last_run_age_seconds', jsonb_build_object('job', h.jobname),
    extract(epoch from now() - h.last_start)::double precision
  from fleet.job_history() h
  where h.last_start is not null;
$$;

comment on function fleet.metric_values() is
  'The metrics that live in the database, for /metrics: totals and ages. One row a metric and label set.';
