-- Schemas, tables and the partitioned parent. What can be replaced in place lives in ../sql and is included below.

create schema fleet;
comment on schema fleet is 'NexMDM fleet heartbeats: devices, their heartbeats by day, their last status, and the life of each partition.';

create schema fleet_detached;
comment on schema fleet_detached is
  'Partitions past the retention: detached, read-only, owned by the archiver''s role, dropped once their archive is proven.';

-- Nothing is granted to public: sql/grants.sql says who may do what.
alter default privileges revoke execute on functions from public;

create table fleet.settings (
  is_only_row boolean not null default true,
  retention interval not null default '90 days',
  premake_days integer not null default 14,
  cadence text not null default 'daily',
  max_late interval not null default '7 days',
  max_future interval not null default '5 minutes',
  offline_after interval not null default '10 minutes',
  archive_grace interval not null default '0',
  archive_max_attempts integer not null default 5,
  store_ip text not null default 'full',
  quarantine_keep interval not null default '30 days',
  quarantine_per_device integer not null default 1000,
  events_keep interval not null default '400 days',
  constraint settings_pkey primary key (is_only_row),
  constraint settings_only_row check (is_only_row),
  constraint settings_retention_range check (retention >= '1 day' and retention <= '3650 days'),
  constraint settings_premake_days_range check (premake_days between 1 and 90),
  constraint settings_cadence_known check (cadence in ('daily', 'monthly')),
  constraint settings_max_late_range check (max_late >= '0' and max_late <= '3650 days'),
  constraint settings_max_future_range check (max_future >= '0' and max_future <= '1 day'),
  constraint settings_offline_after_range check (offline_after > '0'),
  constraint settings_archive_grace_range check (archive_grace >= '0'),
  constraint settings_archive_max_attempts_range check (archive_max_attempts between 1 and 100),
  constraint settings_store_ip_known check (store_ip in ('full', 'prefix', 'none')),
  constraint settings_quarantine_keep_range check (quarantine_keep >= '1 day'),
  constraint settings_quarantine_per_device_range check (quarantine_per_device between 0 and 100000),
  constraint settings_events_keep_range check (events_keep >= '30 days')
);
comment on table fleet.settings is 'The settings, one row. Change them with the set_ functions or a plain UPDATE; each change is kept in settings_audit.';
comment on column fleet.settings.is_only_row is 'Always true: there is one row.';
comment on column fleet.settings.retention is 'How long heartbeats stay online. Change it with fleet.set_retention(interval).';
comment on column fleet.settings.premake_days is 'How many days ahead partitions are made. Change it with fleet.set_premake(integer).';
comment on column fleet.settings.cadence is 'daily or monthly partitions. Set at setup.';
comment on column fleet.settings.max_late is 'A heartbeat older than this on arrival is quarantined as too_late. Never reaches beyond the retention.';
comment on column fleet.settings.max_future is 'A heartbeat further ahead than this on arrival is quarantined as in_future.';
comment on column fleet.settings.offline_after is 'A device silent for longer than this is offline.';
comment on column fleet.settings.archive_grace is 'How long a retired table is kept after its archive was proven.';
comment on column fleet.settings.archive_max_attempts is 'After this many failures in a row, the archiver waits for the next night or for fleet.retry_archive(name).';
comment on column fleet.settings.store_ip is 'full: the device''s address; prefix: its /24 (IPv4) or /48 (IPv6); none.';
comment on column fleet.settings.quarantine_keep is 'How long quarantined heartbeats are kept.';
comment on column fleet.settings.quarantine_per_device is 'How many quarantined heartbeats are kept per device; further ones are rejected.';
comment on column fleet.settings.events_keep is 'How long fleet.events are kept.';
insert into fleet.settings default values;

create table fleet.settings_audit (
  audit_id bigint generated always as identity,
  changed_at timestamptz not null default now(),
  changed_by text not null default session_user,
  setting text not null,
  old_value text,
  new_value text,
  constraint settings_audit_pkey primary key (audit_id)
);
comment on table fleet.settings_audit is 'Every change of fleet.settings: who, when, from what, to what.';
comment on column fleet.settings_audit.audit_id is 'Order of the changes.';
comment on column fleet.settings_audit.changed_at is 'When.';
comment on column fleet.settings_audit.changed_by is 'The login that changed it.';
comment on column fleet.settings_audit.setting is 'Column of fleet.settings.';
comment on column fleet.settings_audit.old_value is 'Value before, as text.';
comment on column fleet.settings_audit.new_value is 'Value after, as text.';

create table fleet.devices (
  device_id bigint generated always as identity,
  alias text not null,
  cohort text not null default 'default',
  token_hash bytea not null,
  heartbeat_interval interval not null default '60 seconds',
  enrolled_at timestamptz not null default now(),
  revoked_at timestamptz,
  constraint devices_pkey primary key (device_id),
  constraint devices_alias_key unique (alias),
  constraint devices_token_hash_key unique (token_hash),
  constraint devices_heartbeat_interval_range check (heartbeat_interval >= '1 second' and heartbeat_interval <= '1 day')
);
comment on table fleet.devices is 'The roster: every device that was enrolled.';
comment on column fleet.devices.device_id is 'Key of the device everywhere in the store; the distribution column for Citus.';
comment on column fleet.devices.alias is 'The fleet''s own name of the device.';
comment on column fleet.devices.cohort is 'Group of devices that are looked at and paced together.';
comment on column fleet.devices.token_hash is 'SHA-256 of its token. The token itself is not stored.';
comment on column fleet.devices.heartbeat_interval is 'How often it is asked to send a heartbeat.';
comment on column fleet.devices.enrolled_at is 'When it was enrolled.';
comment on column fleet.devices.revoked_at is 'When its token was revoked; null while it is valid.';

create table fleet.gateways (
  gateway_id bigint generated always as identity,
  gateway_name text not null,
  token_hash bytea not null,
  created_at timestamptz not null default now(),
  revoked_at timestamptz,
  constraint gateways_pkey primary key (gateway_id),
  constraint gateways_gateway_name_key unique (gateway_name),
  constraint gateways_token_hash_key unique (token_hash)
);
comment on table fleet.gateways is 'Gateways: senders that may post heartbeats of any enrolled device.';
comment on column fleet.gateways.gateway_id is 'Key.';
comment on column fleet.gateways.gateway_name is 'Name of the gateway.';
comment on column fleet.gateways.token_hash is 'SHA-256 of its token. The token itself is not stored.';
comment on column fleet.gateways.created_at is 'When it was made.';
comment on column fleet.gateways.revoked_at is 'When its token was revoked; null while it is valid.';

create table fleet.device_heartbeats (
  ts timestamptz not null,
  received_at timestamptz not null default now(),
  device_id bigint not null,
  signal_dbm smallint,
  battery_pct smallint,
  unity_running boolean,
  network_type text,
  agent_version text,
  ip inet
) partition by range (ts);
comment on table fleet.device_heartbeats is
  'Every heartbeat, partitioned by ts at UTC midnights. Write with fleet.ingest(); name a range of ts when you read.';
comment on column fleet.device_heartbeats.ts is 'When the device sent it, by the device''s clock.';
comment on column fleet.device_heartbeats.received_at is 'When it arrived, by the server''s clock.';
comment on column fleet.device_heartbeats.device_id is 'fleet.devices.device_id; no foreign key, so that ingest takes no lock there.';
comment on column fleet.device_heartbeats.signal_dbm is 'Signal strength in dBm.';
comment on column fleet.device_heartbeats.battery_pct is 'Battery charge, 0 to 100.';
comment on column fleet.device_heartbeats.unity_running is 'Whether its Unity app runs; null when it did not say.';
comment on column fleet.device_heartbeats.network_type is 'Network as the agent names it (wifi, lte, ...).';
comment on column fleet.device_heartbeats.agent_version is 'Version of the agent.';
comment on column fleet.device_heartbeats.ip is 'Address it came from, as far as fleet.settings.store_ip allows.';

create index device_heartbeats_device_id_ts_idx on fleet.device_heartbeats (device_id, ts desc);
comment on index fleet.device_heartbeats_device_id_ts_idx is 'A device''s heartbeats, newest first.';

-- A unique index on an expression cannot stand on the partitioned parent (it would have to contain ts itself), so
-- pg_partman copies it from this template to each partition.
create table fleet.device_heartbeats_template (like fleet.device_heartbeats including comments);
comment on table fleet.device_heartbeats_template is
  'pg_partman''s template: its unique index is made on every partition. Holds no rows.';
create unique index device_heartbeats_template_dedupe_key on fleet.device_heartbeats_template (
  device_id, date_bin('10 seconds', ts, timestamptz '2000-01-01 00:00:00+00')
);
comment on index fleet.device_heartbeats_template_dedupe_key is
  'One heartbeat per device and 10-second bucket: a retry is not stored twice.';

create table fleet.device_last_status (
  device_id bigint not null,
  last_ts timestamptz,
  last_received_at timestamptz,
  battery_pct smallint,
  network_type text,
  unity_running boolean,
  signal_dbm smallint,
  agent_version text,
  ip inet,
  status text,
  constraint device_last_status_pkey primary key (device_id),
  constraint device_last_status_status_known check (status in ('ok', 'unity_down', 'clock_skewed'))
) with (
  -- Every heartbeat updates its device's row in place: half-full pages and an early vacuum keep those updates HOT.
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0.05,
  autovacuum_vacuum_threshold = 1000
);
comment on table fleet.device_last_status is
  'The newest heartbeat of each device, kept by a trigger. No index on last_ts: with one, no update is HOT and upserts run at half the rate.';
comment on column fleet.device_last_status.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_last_status.last_ts is 'ts of its newest heartbeat; null before the first.';
comment on column fleet.device_last_status.last_received_at is 'When the server last heard from it.';
comment on column fleet.device_last_status.battery_pct is 'Battery charge, 0 to 100.';
comment on column fleet.device_last_status.network_type is 'Network as the agent names it.';
comment on column fleet.device_last_status.unity_running is 'Whether its Unity app ran.';
comment on column fleet.device_last_status.signal_dbm is 'Signal strength in dBm.';
comment on column fleet.device_last_status.agent_version is 'Version of the agent.';
comment on column fleet.device_last_status.ip is 'Address it came from.';
comment on column fleet.device_last_status.status is
  'What the device said: ok, unity_down, or clock_skewed when its heartbeats are quarantined; null before the first. Whether it is online is derived in fleet.device_status.';

create table fleet.heartbeat_quarantine (
  received_at timestamptz not null,
  device_id bigint not null,
  ts timestamptz not null,
  reason text not null,
  payload jsonb not null,
  constraint heartbeat_quarantine_pkey primary key (device_id, ts, reason),
  constraint heartbeat_quarantine_reason_known check (reason in ('too_late', 'in_future', 'no_partition'))
);
comment on table fleet.heartbeat_quarantine is
  'Heartbeats kept aside because of their ts, not stored. Kept fleet.settings.quarantine_keep, at most quarantine_per_device each.';
comment on column fleet.heartbeat_quarantine.received_at is 'When it arrived.';
comment on column fleet.heartbeat_quarantine.device_id is 'fleet.devices.device_id.';
comment on column fleet.heartbeat_quarantine.ts is 'The ts it gave.';
comment on column fleet.heartbeat_quarantine.reason is 'too_late, in_future or no_partition.';
comment on column fleet.heartbeat_quarantine.payload is 'The heartbeat as it came.';
create index heartbeat_quarantine_received_at_idx on fleet.heartbeat_quarantine (received_at);
comment on index fleet.heartbeat_quarantine_received_at_idx is 'For pruning by age and for fleet.check().';

create table fleet.hb_partitions (
  partition_name text not null,
  relid oid,
  range_start timestamptz not null,
  range_end timestamptz not null,
  state text not null default 'active',
  step text,
  row_count bigint,
  bytes_size bigint,
  min_ts timestamptz,
  max_ts timestamptz,
  checksum_sha256 text,
  content_checksum numeric,
  archive_url text,
  archive_bytes bigint,
  created_at timestamptz not null default now(),
  detached_at timestamptz,
  archived_at timestamptz,
  proven_at timestamptz,
  dropped_at timestamptz,
  restored_at timestamptz,
  attempts integer not null default 0,
  next_attempt_at timestamptz,
  last_error text,
  lease_owner text,
  lease_until timestamptz,
  held_reason text,
  held_by text,
  is_proven_empty boolean not null default false,
  constraint hb_partitions_pkey primary key (partition_name),
  constraint hb_partitions_range check (range_start < range_end),
  constraint hb_partitions_state_known check (
    state in ('active', 'detached', 'archiving', 'archived', 'archive_failed', 'dropped', 'restored')
  ),
  constraint hb_partitions_step_known check (step in ('claimed', 'frozen', 'exported', 'uploaded', 'proven')),
  constraint hb_partitions_archived_is_proven check (
    state not in ('archived', 'dropped', 'restored')
    or is_proven_empty
    or (
      checksum_sha256 is not null and content_checksum is not null and proven_at is not null
      and archive_url is not null and row_count is not null
    )
  ),
  constraint hb_partitions_checksum_sha256_form check (checksum_sha256 ~ '^[0-9a-f]{64}$')
);
comment on table fleet.hb_partitions is
  'Every partition that ever was, and where its rows are now. state changes only through functions: active, detached, archiving, archived, dropped; archive_failed; restored.';
comment on column fleet.hb_partitions.partition_name is 'Name of the table, as pg_partman made it.';
comment on column fleet.hb_partitions.relid is 'oid of the table; null when it is dropped or gone.';
comment on column fleet.hb_partitions.range_start is 'First moment of the partition, a UTC midnight, from the catalog.';
comment on column fleet.hb_partitions.range_end is 'First moment after the partition.';
comment on column fleet.hb_partitions.state is 'active, detached, archiving, archived, archive_failed, dropped or restored.';
comment on column fleet.hb_partitions.step is 'Last step of archiving that was finished: claimed, frozen, exported, uploaded, proven.';
comment on column fleet.hb_partitions.row_count is 'Rows: counted exactly when it is retired and when it is exported.';
comment on column fleet.hb_partitions.bytes_size is 'Size on disk with indexes, in bytes, when last looked at.';
comment on column fleet.hb_partitions.min_ts is 'Oldest ts in it, from the export.';
comment on column fleet.hb_partitions.max_ts is 'Newest ts in it, from the export.';
comment on column fleet.hb_partitions.checksum_sha256 is 'SHA-256 of the Parquet file, in hex.';
comment on column fleet.hb_partitions.content_checksum is 'Checksum of the rows, independent of order and format; see fleet.content_checksum().';
comment on column fleet.hb_partitions.archive_url is 'Where the Parquet file is.';
comment on column fleet.hb_partitions.archive_bytes is 'Size of the Parquet file in bytes.';
comment on column fleet.hb_partitions.created_at is 'When it was first seen.';
comment on column fleet.hb_partitions.detached_at is 'When it was retired.';
comment on column fleet.hb_partitions.archived_at is 'When it reached state archived.';
comment on column fleet.hb_partitions.proven_at is 'When the archive was read back and found equal.';
comment on column fleet.hb_partitions.dropped_at is 'When the table was dropped.';
comment on column fleet.hb_partitions.restored_at is 'When it was brought back from the archive.';
comment on column fleet.hb_partitions.attempts is 'Failures of archiving in a row.';
comment on column fleet.hb_partitions.next_attempt_at is 'When the archiver tries again; null: with the next night, or fleet.retry_archive(name).';
comment on column fleet.hb_partitions.last_error is 'Why the last attempt failed.';
comment on column fleet.hb_partitions.lease_owner is 'The archiver that works on it.';
comment on column fleet.hb_partitions.lease_until is 'Until when it is that archiver''s; another may take it afterwards.';
comment on column fleet.hb_partitions.held_reason is 'Why it is kept from being retired, archived or dropped; null: not held.';
comment on column fleet.hb_partitions.held_by is 'Who holds it.';
comment on column fleet.hb_partitions.is_proven_empty is 'True when it was locked, found without rows, and may go without an archive.';
create index hb_partitions_range_start_idx on fleet.hb_partitions (range_start);
comment on index fleet.hb_partitions_range_start_idx is 'The partition of a moment.';

create table fleet.events (
  event_id bigint generated always as identity,
  at timestamptz not null default clock_timestamp(),
  event text not null,
  partition_name text,
  run_id bigint,
  rows bigint,
  duration_ms bigint,
  is_ok boolean not null default true,
  detail text,
  constraint events_pkey primary key (event_id)
);
comment on table fleet.events is 'What the store did, append-only: partition.create, partition.archive.start, partition.archive.end, partition.drop, reconciliation.completed and so on.';
comment on column fleet.events.event_id is 'Order of the events.';
comment on column fleet.events.at is 'When.';
comment on column fleet.events.event is 'Name of the event.';
comment on column fleet.events.partition_name is 'The partition it is about, if any.';
comment on column fleet.events.run_id is 'The run of maintain() or nightly() it belongs to, if any.';
comment on column fleet.events.rows is 'Rows concerned, if counted.';
comment on column fleet.events.duration_ms is 'How long it took, in milliseconds.';
comment on column fleet.events.is_ok is 'False when it is a failure.';
comment on column fleet.events.detail is 'The rest, for a person.';
create index events_event_at_idx on fleet.events (event, at);
comment on index fleet.events_event_at_idx is 'The last time something happened.';
create index events_at_idx on fleet.events (at);
comment on index fleet.events_at_idx is 'For pruning by age.';
create index events_run_id_idx on fleet.events (run_id) where run_id is not null;
comment on index fleet.events_run_id_idx is 'The steps of one run.';
create index events_partition_name_idx on fleet.events (partition_name) where partition_name is not null;
comment on index fleet.events_partition_name_idx is 'The history of one partition.';

create sequence fleet.run_id_seq as bigint;
comment on sequence fleet.run_id_seq is 'Numbers the runs of maintain() and nightly().';

create table fleet.counters (
  counter text not null,
  total numeric not null default 0,
  constraint counters_pkey primary key (counter)
);
comment on table fleet.counters is 'Totals since setup, never pruned, for /metrics.';
comment on column fleet.counters.counter is 'Name of the metric.';
comment on column fleet.counters.total is 'Its total.';
insert into fleet.counters (counter) values
  ('partitions_created_total'), ('partition_create_failures_total'),
  ('partitions_archived_total'), ('hb_partition_archived_total'), ('hb_partition_dropped_total'),
  ('archive_failures_total'), ('archive_bytes_pushed_total'), ('reconciliation_rows_updated_total');

create table fleet.archivers (
  worker text not null,
  version text not null,
  started_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  constraint archivers_pkey primary key (worker)
);
comment on table fleet.archivers is 'The archivers, and when each was last heard of.';
comment on column fleet.archivers.worker is 'Name of the process: host and pid.';
comment on column fleet.archivers.version is 'Its version.';
comment on column fleet.archivers.started_at is 'When it was first heard of.';
comment on column fleet.archivers.last_seen_at is 'When it was last heard of.';

create table fleet.restore_requests (
  request_id bigint generated always as identity,
  from_day date not null,
  to_day date not null,
  requested_at timestamptz not null default now(),
  requested_by text not null default session_user,
  constraint restore_requests_pkey primary key (request_id),
  constraint restore_requests_range check (from_day <= to_day)
);
comment on table fleet.restore_requests is 'Requests to bring archived days back online.';
comment on column fleet.restore_requests.request_id is 'Key, as fleet.request_restore() returned it.';
comment on column fleet.restore_requests.from_day is 'First day wanted.';
comment on column fleet.restore_requests.to_day is 'Last day wanted.';
comment on column fleet.restore_requests.requested_at is 'When.';
comment on column fleet.restore_requests.requested_by is 'The login that asked.';

create table fleet.restore_items (
  request_id bigint not null,
  partition_name text not null,
  state text not null default 'pending',
  lease_owner text,
  lease_until timestamptz,
  finished_at timestamptz,
  last_error text,
  constraint restore_items_pkey primary key (request_id, partition_name),
  constraint restore_items_request_id_fkey foreign key (request_id) references fleet.restore_requests (request_id),
  constraint restore_items_partition_name_fkey foreign key (partition_name) references fleet.hb_partitions (partition_name),
  constraint restore_items_state_known check (state in ('pending', 'running', 'done', 'failed'))
);
comment on table fleet.restore_items is 'The partitions of each restore request.';
comment on column fleet.restore_items.request_id is 'fleet.restore_requests.request_id.';
comment on column fleet.restore_items.partition_name is 'fleet.hb_partitions.partition_name.';
comment on column fleet.restore_items.state is 'pending, running, done or failed.';
comment on column fleet.restore_items.lease_owner is 'The archiver that works on it.';
comment on column fleet.restore_items.lease_until is 'Until when it is that archiver''s.';
comment on column fleet.restore_items.finished_at is 'When it was done or failed.';
comment on column fleet.restore_items.last_error is 'Why it failed.';

-- Functions in the order in which they need each other; those in SQL are checked as they are made.
--!include functions/record_event.sql
--!include functions/count_up.sql
--!include functions/elapsed_ms.sql
--!include functions/attached_partitions.sql
--!include functions/protect_partition.sql
--!include functions/audit_settings.sql
--!include functions/sync_partitions.sql
--!include functions/ensure_partitions.sql
--!include functions/create_partitions.sql
--!include functions/set_up_partitions.sql
--!include functions/premake.sql
--!include functions/record_last_status.sql
--!include functions/quarantine.sql
--!include functions/ingest.sql
--!include functions/retention_plan.sql
--!include functions/set_retention.sql
--!include functions/set_premake.sql
--!include functions/get_partition.sql
--!include functions/hand_to_archiver.sql
--!include functions/retire_partition.sql
--!include functions/wake_archiver.sql
--!include functions/retry_archive.sql
--!include functions/archive_partition.sql
--!include functions/bind_range.sql
--!include functions/hold_partition.sql
--!include functions/release_partition.sql
--!include functions/check_lease.sql
--!include functions/claim_partition.sql
--!include functions/renew_lease.sql
--!include functions/release_lease.sql
--!include functions/record_frozen.sql
--!include functions/record_export.sql
--!include functions/record_upload.sql
--!include functions/record_proof.sql
--!include functions/record_failure.sql
--!include functions/drop_partition.sql
--!include functions/archive_columns.sql
--!include functions/content_checksum.sql
--!include functions/archiver_heartbeat.sql
--!include functions/request_restore.sql
--!include functions/claim_restore.sql
--!include functions/renew_restore_lease.sql
--!include functions/begin_restore.sql
--!include functions/finish_restore.sql
--!include functions/fail_restore.sql
--!include functions/make_token.sql
--!include functions/hash_token.sql
--!include functions/create_device.sql
--!include functions/enroll_device.sql
--!include functions/revoke_device.sql
--!include functions/create_gateway_token.sql
--!include functions/revoke_gateway.sql
--!include functions/authenticate.sql
--!include functions/known_devices.sql
--!include functions/heal_last_status.sql
--!include functions/reconcile.sql
--!include functions/backfill_last_status.sql
--!include functions/refresh_sizes.sql
--!include functions/prune.sql
--!include functions/retry_failed_archives.sql
--!include functions/nightly_plan.sql
--!include functions/run_steps.sql
--!include functions/job_definitions.sql
--!include functions/schedule_jobs.sql
--!include functions/job_history.sql
--!include functions/metric_values.sql
--!include functions/begin_run.sql
--!include functions/end_run.sql
--!include functions/do_step.sql
--!include procedures/run_step.sql
--!include procedures/maintain.sql
--!include procedures/nightly.sql
--!include triggers/device_heartbeats.sql
--!include triggers/hb_partitions.sql
--!include triggers/settings.sql
--!include views/device_status.sql
--!include views/devices_offline.sql
--!include views/unity_down.sql
--!include views/fleet_summary.sql
--!include views/partition_health.sql
--!include views/archives.sql
--!include views/data_coverage.sql
--!include views/storage_growth.sql
--!include views/job_health.sql
--!include functions/check.sql

-- From the retention back to premake_days ahead.
select fleet.set_up_partitions();

--!include grants.sql
-- The partitions that were made before the grants.
select partman.reapply_privileges('fleet.device_heartbeats');
