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
    greatest(0, extract(epoch from coalesce(max(p.range_end), now()) - now()) / 86400)::double precision
  from fleet.hb_partitions p
  where p.relid is not null and exists (
    select from pg_inherits i where i.inhrelid = fleet.table_of(p) and i.inhparent = 'fleet.device_heartbeats'::regclass
  )
  union all
  select 'retention_lag_days', '{}',
    greatest(0, coalesce(max(extract(epoch from now() - s.retention - p.range_end)), 0) / 86400)::double precision
  from fleet.settings s
  left join fleet.hb_partitions p on p.state = 'active' and p.held_reason is null
    and p.range_end <= coalesce((select min(h.since) from fleet.import_holds() h), 'infinity')
    -- It was held or restored until then, and the next night retires it.
    and not exists (
      select 1 from fleet.events e
      where e.partition_name = p.partition_name and e.event = 'partition.release' and e.at > now() - interval '2 days'
    )
  union all
  select 'archive_backlog_partitions', '{}', count(*)::double precision
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving', 'archive_failed')
  union all
  select 'archiver_heartbeat_age_seconds', '{}', extract(epoch from now() - max(a.last_seen_at))::double precision
  from fleet.archivers a
  where a.last_seen_at <= clock_timestamp()  -- the clock may have run ahead
  having count(*) > 0
  union all
  select 'notifier_heartbeat_age_seconds', '{}', extract(epoch from now() - max(n.last_seen_at))::double precision
  from fleet.notifiers n
  where n.last_seen_at <= clock_timestamp()
  having count(*) > 0
  union all
  select v.metric, jsonb_build_object('webhook', w.webhook_name), v.value
  from fleet.webhooks w
  cross join lateral (
    select count(*)::double precision as pending,
      coalesce(extract(epoch from now() - min(d.due_at)), 0)::double precision as oldest
    from fleet.webhook_deliveries d
    where d.webhook_id = w.webhook_id and d.state = 'pending' and now() - d.due_at >= interval '0' and w.paused_at is null
  ) p
  cross join lateral (
    select count(*)::double precision as dead
    from fleet.webhook_deliveries d
    where d.webhook_id = w.webhook_id and d.state = 'dead'
  ) g
  cross join lateral (
    values ('hb_webhook_pending', p.pending), ('hb_webhook_oldest_seconds', p.oldest), ('hb_webhook_dead', g.dead)
  ) as v (metric, value)
  union all
  select 'scheduler_last_run_age_seconds', jsonb_build_object('job', g.jobname),
    greatest(0, extract(epoch from g.age))::double precision
  from fleet.scheduler_ages() g
  union all
  select v.metric, jsonb_build_object('state', s.state), v.value
  from (
    select p.state, count(*)::double precision as partitions,
      coalesce(sum(p.row_count), 0)::double precision as rows,
      coalesce(sum(p.bytes_size) filter (where p.relid is not null), 0)::double precision as bytes
    from fleet.hb_partitions p
    group by p.state
  ) s
  cross join lateral (
    values ('partitions', s.partitions), ('partition_rows', s.rows), ('partition_bytes', s.bytes)
  ) as v (metric, value)
  union all
  select 'archive_bytes', '{}', coalesce(sum(p.archive_bytes), 0)::double precision
  from fleet.hb_partitions p
  where p.proven_at is not null
  union all
  select v.metric, jsonb_build_object('slo', s.slo), v.value::double precision
  from fleet.slo s
  cross join lateral (
    values
      ('slo_good', s.good::numeric), ('slo_bad', s.bad::numeric), ('slo_target_ratio', s.target),
      ('slo_error_ratio', s.ratio), ('slo_budget_left_ratio', s.budget_left)
  ) as v (metric, value)
  where v.value is not null
  union all
  select m.metric, m.labels, m.value
  from fleet.postgres_metrics() m;
$$;

comment on function fleet.metric_values() is
  'The metrics that come from the database, for /metrics: totals, ages and error budgets. One row for each metric and label set; '
  'fleet.metric_definitions() describes them.';
