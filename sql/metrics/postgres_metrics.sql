create or replace function fleet.postgres_metrics()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- All databases, because they share the limit. Without pg_monitor the state of other roles is unknown.
  select 'postgres_connections', jsonb_build_object('state', coalesce(a.state, 'unknown')), count(*)::double precision
  from pg_stat_activity a
  where a.backend_type = 'client backend'
  group by a.state
  union all
  select 'postgres_connections_max', '{}',
    current_setting('max_connections')::double precision - current_setting('superuser_reserved_connections')::double precision
  union all
  select 'postgres_longest_transaction_seconds', '{}',
    greatest(0, coalesce(max(extract(epoch from clock_timestamp() - a.xact_start)), 0))::double precision
  from pg_stat_activity a
  where a.datname = current_database() and a.backend_type = 'client backend' and a.pid <> pg_backend_pid()
  union all
  select v.metric, v.labels, v.value::double precision
  from pg_stat_database d
  cross join lateral (
    values
      ('postgres_transactions_total', '{"outcome":"committed"}'::jsonb, d.xact_commit),
      ('postgres_transactions_total', '{"outcome":"rolled_back"}', d.xact_rollback),
      ('postgres_blocks_total', '{"found":"in_buffers"}', d.blks_hit),
      ('postgres_blocks_total', '{"found":"outside"}', d.blks_read)
  ) as v (metric, labels, value)
  where d.datname = current_database()
  union all
  select 'postgres_dead_rows', '{"table":"device_last_status"}',
    pg_stat_get_dead_tuples('fleet.device_last_status'::regclass)::double precision
  union all
  select 'postgres_replica_bytes_behind', jsonb_build_object('replica', r.application_name, 'address', host(r.client_addr)),
    max(pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn))::double precision
  from pg_stat_replication r
  where not pg_is_in_recovery() and r.replay_lsn is not null
  group by r.application_name, r.client_addr;
$$;

comment on function fleet.postgres_metrics() is 'The part of fleet.metric_values() about Postgres itself.';
