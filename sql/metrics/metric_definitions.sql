create or replace function fleet.metric_definitions()
returns table (metric text, type text, unit text, help text)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    ('partitions_created_total', 'counter', 'partitions', 'Partitions of heartbeats that were made'),
    ('partition_create_failures_total', 'counter', 'runs', 'Runs of maintenance that could not make partitions ahead'),
    ('partitions_archived_total', 'counter', 'partitions', 'Partitions whose archive was read back and proven'),
    ('hb_partition_archived_total', 'counter', 'partitions', 'The same as partitions_archived_total'),
    ('hb_partition_dropped_total', 'counter', 'partitions', 'Partitions dropped after their archive was proven'),
    ('archive_failures_total', 'counter', 'tries', 'Tries to archive a partition that failed'),
    ('archive_bytes_pushed_total', 'counter', 'bytes', 'Size of the Parquet files that were written to the archive'),
    ('reconciliation_rows_updated_total', 'counter', 'devices', 'Devices whose last status was behind their heartbeats and was healed'),
    ('partition_premake_runway_days', 'gauge', 'days', 'Time for which partitions are made ahead'),
    ('retention_lag_days', 'gauge', 'days', 'How long the oldest partition has been past its retention and is still online; days that are held do not count'),
    ('archive_backlog_partitions', 'gauge', 'partitions', 'Partitions that are retired and not yet archived'),
    ('archiver_heartbeat_age_seconds', 'gauge', 'seconds', 'Time since an archiver was last heard of'),
    ('scheduler_last_run_age_seconds', 'gauge', 'seconds', 'Time since the job last began, or since Postgres started if that was later; of maintain, nightly and reconcile since setup while they never have'),
    ('partitions', 'gauge', 'partitions', 'Partitions by state'),
    ('partition_rows', 'gauge', 'heartbeats', 'Heartbeats by state of their partition, as counted in the night'),
    ('partition_bytes', 'gauge', 'bytes', 'Size on disk by state of the partition, as measured in the night'),
    ('archive_bytes', 'gauge', 'bytes', 'Size of the proven archives'),
    ('cohort_devices', 'gauge', 'devices', 'Devices on the roster; cohort (all) is the whole fleet'),
    ('cohort_active_devices', 'gauge', 'devices', 'Devices that were heard of lately, as fleet.fleet_silence counts them'),
    ('cohort_gone_quiet_devices', 'gauge', 'devices', 'Those of them that have gone quiet'),
    ('cohort_gone_quiet_ratio', 'gauge', 'ratio', 'Their share'),
    ('cohort_usual_quiet_ratio', 'gauge', 'ratio', 'The share that is usual at this time of day'),
    ('cohort_silence_alarm', 'gauge', 'flag', '1 while many more have gone quiet than usual, else 0'),
    ('cohort_silence_muted', 'gauge', 'flag', '1 while that cannot be judged, else 0'),
    ('slo_good', 'gauge', 'tries', 'What succeeded in the period of the error budget'),
    ('slo_bad', 'gauge', 'tries', 'What failed in the period of the error budget'),
    ('slo_target_ratio', 'gauge', 'ratio', 'Share that may fail'),
    ('slo_error_ratio', 'gauge', 'ratio', 'Share that failed in the period of the error budget'),
    ('slo_budget_left_ratio', 'gauge', 'ratio', 'What is left of the error budget: 1 all, 0 nothing, below 0 overspent'),
    ('postgres_connections', 'gauge', 'connections', 'Connections to Postgres by what they do'),
    ('postgres_connections_max', 'gauge', 'connections', 'Connections that Postgres takes of others than superusers'),
    ('postgres_transactions_total', 'counter', 'transactions', 'Transactions in this database since its statistics were reset'),
    ('postgres_blocks_total', 'counter', 'blocks', 'Blocks of this database that were found in shared buffers, or read from the operating system'),
    ('postgres_longest_transaction_seconds', 'gauge', 'seconds', 'Age of the oldest transaction of a client in this database'),
    ('postgres_dead_rows', 'gauge', 'rows', 'Dead rows that autovacuum has not removed yet'),
    ('postgres_replica_bytes_behind', 'gauge', 'bytes', 'WAL that a replica has not replayed yet');
$$;

comment on function fleet.metric_definitions() is
  'What each metric of fleet.metric_values() and fleet.silence_metrics() is: its type for Prometheus, its unit and a sentence. Example: select * from fleet.metric_definitions();';
