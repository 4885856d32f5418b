create or replace function fleet.metric_definitions()
returns table (metric text, type text, unit text, help text)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    ('partitions_created_total', 'counter', 'partitions', 'Partitions of heartbeats that were created'),
    ('partition_create_failures_total', 'counter', 'runs', 'Maintenance runs that could not create partitions ahead'),
    ('partitions_archived_total', 'counter', 'partitions', 'Partitions whose archive was read back and proven'),
    ('hb_partition_archived_total', 'counter', 'partitions', 'The same as partitions_archived_total'),
    ('hb_partition_dropped_total', 'counter', 'partitions', 'Partitions dropped after their archive was proven'),
    ('archive_failures_total', 'counter', 'attempts', 'Failed attempts to archive a partition'),
    ('archive_bytes_pushed_total', 'counter', 'bytes', 'Size of the Parquet files written to the archive'),
    ('reconciliation_rows_updated_total', 'counter', 'devices',
      'Devices whose last status was behind their heartbeats and was corrected'),
    ('partition_premake_runway_days', 'gauge', 'days', 'Days for which partitions exist ahead'),
    ('retention_lag_days', 'gauge', 'days',
      'How long the oldest partition that is still online has been past the retention; held partitions do not count'),
    ('archive_backlog_partitions', 'gauge', 'partitions', 'Partitions that are retired but not archived yet'),
    ('archiver_heartbeat_age_seconds', 'gauge', 'seconds', 'Time since an archiver was last seen'),
    ('scheduler_last_run_age_seconds', 'gauge', 'seconds',
      'Time since the job last began, or since Postgres started if that was later; since setup for maintain, nightly and '
        'reconcile if they never ran'),
    ('hb_webhook_delivered_total', 'counter', 'messages', 'Messages that the receiver of a webhook accepted'),
    ('hb_webhook_failed_total', 'counter', 'attempts', 'Attempts to send a message to a webhook that failed'),
    ('hb_webhook_dead_total', 'counter', 'messages', 'Messages to webhooks that could not be sent for three days'),
    ('hb_webhook_pending', 'gauge', 'messages', 'Messages to the webhook that are due and not accepted yet'),
    ('hb_webhook_oldest_seconds', 'gauge', 'seconds', 'How long the oldest of them has been due; 0 without one'),
    ('hb_webhook_dead', 'gauge', 'messages', 'Messages to the webhook that were given up and neither retried nor dismissed'),
    ('notifier_heartbeat_age_seconds', 'gauge', 'seconds', 'Time since a notifier was last seen'),
    ('partitions', 'gauge', 'partitions', 'Partitions by state'),
    ('partition_rows', 'gauge', 'heartbeats', 'Heartbeats by state of their partition, counted each night'),
    ('partition_bytes', 'gauge', 'bytes', 'Size on disk by state of the partition, measured each night'),
    ('archive_bytes', 'gauge', 'bytes', 'Size of the proven archives'),
    ('cohort_devices', 'gauge', 'devices', 'Devices on the roster; cohort (all) is the whole fleet'),
    ('cohort_active_devices', 'gauge', 'devices', 'Devices that sent recently, as fleet.fleet_silence counts them'),
    ('cohort_gone_quiet_devices', 'gauge', 'devices', 'Active devices that have gone quiet'),
    ('cohort_gone_quiet_ratio', 'gauge', 'ratio', 'Share of the active devices that have gone quiet'),
    ('cohort_usual_quiet_ratio', 'gauge', 'ratio', 'The share that usually goes quiet at this time of day'),
    ('cohort_silence_alarm', 'gauge', 'flag', '1 while many more devices than usual have gone quiet, else 0'),
    ('cohort_silence_muted', 'gauge', 'flag', '1 while the alarm cannot be evaluated, else 0'),
    ('slo_good', 'gauge', 'attempts', 'Attempts that succeeded in the period of the error budget'),
    ('slo_bad', 'gauge', 'attempts', 'Attempts that failed in the period of the error budget'),
    ('slo_target_ratio', 'gauge', 'ratio', 'Share of the attempts that may fail'),
    ('slo_error_ratio', 'gauge', 'ratio', 'Share of the attempts that failed in the period of the error budget'),
    ('slo_budget_left_ratio', 'gauge', 'ratio', 'What is left of the error budget: 1 is all, 0 is nothing, below 0 is overspent'),
    ('postgres_connections', 'gauge', 'connections', 'Connections to Postgres by state'),
    ('postgres_connections_max', 'gauge', 'connections', 'Connections that Postgres allows for roles that are not superusers'),
    ('postgres_transactions_total', 'counter', 'transactions', 'Transactions in this database since its statistics were reset'),
    ('postgres_blocks_total', 'counter', 'blocks',
      'Blocks of this database that were found in shared buffers, or read from the operating system'),
    ('postgres_longest_transaction_seconds', 'gauge', 'seconds', 'Age of the oldest transaction of a client in this database'),
    ('postgres_dead_rows', 'gauge', 'rows', 'Dead rows that autovacuum has not removed yet'),
    ('postgres_replica_bytes_behind', 'gauge', 'bytes', 'WAL that a replica has not replayed yet');
$$;

comment on function fleet.metric_definitions() is
  'Describes each metric of fleet.metric_values() and fleet.silence_metrics(): type for Prometheus, unit and help. Example: '
  'select * from fleet.metric_definitions();';
