--! Previous: -
--! Hash: sha1:3049aa638ec4482720c5bf9cff43c111ead20a1b
--! Message: The fleet schema

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
--! Included functions/record_event.sql
create or replace function fleet.record_event(
  p_event text,
  p_partition text default null,
  p_rows bigint default null,
  p_duration_ms bigint default null,
  p_detail text default null,
  p_is_ok boolean default true,
  p_run_id bigint default null
) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.events (event, partition_name, rows, duration_ms, detail, is_ok, run_id)
  values (
    p_event, p_partition, p_rows, p_duration_ms, p_detail, p_is_ok,
    -- A procedure names its run for the functions it calls; see fleet.nightly().
    coalesce(p_run_id, nullif(current_setting('fleet.run_id', true), '')::bigint)
  );
$$;

comment on function fleet.record_event(text, text, bigint, bigint, text, boolean, bigint) is
  'Appends to fleet.events.';
--! EndIncluded functions/record_event.sql
--! Included functions/count_up.sql
create or replace function fleet.count_up(p_counter text, p_by numeric default 1) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.counters as c (counter, total)
  values (p_counter, p_by)
  on conflict (counter) do update
    set total = c.total + excluded.total;
$$;

comment on function fleet.count_up(text, numeric) is 'Adds to a total in fleet.counters.';
--! EndIncluded functions/count_up.sql
--! Included functions/elapsed_ms.sql
create or replace function fleet.elapsed_ms(p_since timestamptz) returns bigint
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select (extract(epoch from clock_timestamp() - p_since) * 1000)::bigint;
$$;

comment on function fleet.elapsed_ms(timestamptz) is 'Milliseconds by the clock since then.';
--! EndIncluded functions/elapsed_ms.sql
--! Included functions/attached_partitions.sql
-- The catalog is the truth about partitions; names are not parsed (pg_partman 4 and 5 name them differently).
create or replace function fleet.attached_partitions()
returns table (relid oid, partition_name text, range_start timestamptz, range_end timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
as $$
  select c.oid, c.relname::text, b.bounds[1]::timestamptz, b.bounds[2]::timestamptz
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  cross join lateral (
    select regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') as bounds
  ) b
  where i.inhparent = to_regclass('fleet.device_heartbeats')
    and b.bounds is not null
  order by 3;
$$;

comment on function fleet.attached_partitions() is
  'The partitions of fleet.device_heartbeats as the catalog has them, with their bounds.';
--! EndIncluded functions/attached_partitions.sql
--! Included functions/protect_partition.sql
-- A restored day counts as unproven again: rows may have been added while it was attached.
create or replace function fleet.protect_partition() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet_guard.partitions as g (partition_name, relid, is_proven)
  values (new.partition_name, new.relid, new.is_proven_empty or new.state in ('archived', 'dropped'))
  on conflict (partition_name) do update
    set relid = excluded.relid, is_proven = excluded.is_proven
    where (g.relid, g.is_proven) is distinct from (excluded.relid, excluded.is_proven);
  return null;
end
$$;

comment on function fleet.protect_partition() is
  'Trigger on fleet.hb_partitions: tells the guard in fleet_guard which partitions may be dropped.';
--! EndIncluded functions/protect_partition.sql
--! Included functions/audit_settings.sql
create or replace function fleet.audit_settings() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.settings_audit (setting, old_value, new_value)
  select n.key, o.value, n.value
  from jsonb_each_text(to_jsonb(new)) n
  join jsonb_each_text(to_jsonb(old)) o using (key)
  where n.value is distinct from o.value;
  return null;
end
$$;

comment on function fleet.audit_settings() is 'Trigger on fleet.settings: keeps every change in fleet.settings_audit.';
--! EndIncluded functions/audit_settings.sql
--! Included functions/sync_partitions.sql
create or replace function fleet.sync_partitions() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_new text;
  v_count integer := 0;
begin
  for v_new in
    insert into fleet.hb_partitions as p (partition_name, relid, range_start, range_end)
    select a.partition_name, a.relid, a.range_start, a.range_end
    from fleet.attached_partitions() a
    left join fleet.hb_partitions known using (partition_name)
    where (
        known.partition_name is null
        or known.relid is distinct from a.relid
        or known.state not in ('active', 'restored')
      )
      -- Renamed by hand: fleet.check() asks for its name back.
      and not exists (
        select from fleet.hb_partitions o where o.relid = a.relid and o.partition_name <> a.partition_name
      )
    order by a.range_start
    -- A known name is a table that came back: restored from a dump, or attached by hand.
    on conflict (partition_name) do update
      set relid = excluded.relid,
        range_start = excluded.range_start,
        range_end = excluded.range_end,
        state = case when p.state = 'restored' then 'restored' else 'active' end,
        step = null, lease_owner = null, lease_until = null, next_attempt_at = null
    returning p.partition_name
  loop
    v_count := v_count + 1;
    perform fleet.record_event('partition.create', v_new);
  end loop;
  if v_count > 0 then
    perform fleet.count_up('partitions_created_total', v_count);
  end if;

  -- Detached by hand: it goes the way of the others. Gone altogether: said by fleet.check().
  update fleet.hb_partitions p
  set relid = c.oid,
    state = case when c.oid is null then p.state else 'detached' end,
    detached_at = case when c.oid is null then p.detached_at else now() end,
    last_error = case when c.oid is null then 'the table is gone' else p.last_error end
  from fleet.hb_partitions q
  left join pg_class c on c.oid = q.relid and c.relkind = 'r' and not c.relispartition
  where q.partition_name = p.partition_name
    and p.state in ('active', 'restored')
    and p.relid is not null
    and not exists (select from pg_inherits i where i.inhrelid = p.relid and i.inhparent = to_regclass('fleet.device_heartbeats'));

  return v_count;
end
$$;

comment on function fleet.sync_partitions() is
  'Brings fleet.hb_partitions in line with the catalog; returns how many partitions were new to it.';
--! EndIncluded functions/sync_partitions.sql
--! Included functions/ensure_partitions.sql
-- The one place that knows that pg_partman 4 and 5 differ in the calls that make partitions.
create or replace function fleet.ensure_partitions(p_starts timestamptz[]) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partman_major integer;
begin
  if cardinality(p_starts) = 0 then
    return;
  end if;
  select split_part(extversion, '.', 1)::integer into v_partman_major
  from pg_extension
  where extname = 'pg_partman';
  if v_partman_major >= 5 then
    perform partman.create_partition_time(p_parent_table => 'fleet.device_heartbeats', p_partition_times => p_starts);
  else
    -- 4.7 would ANALYZE the whole parent after it.
    execute 'select partman.create_partition_time(p_parent_table => $1, p_partition_times => $2, p_analyze => false)'
    using 'fleet.device_heartbeats', p_starts;
  end if;
end
$$;

comment on function fleet.ensure_partitions(timestamptz[]) is
  'Has pg_partman make the partitions that begin at these moments; those that exist are left alone.';
--! EndIncluded functions/ensure_partitions.sql
--! Included functions/create_partitions.sql
create or replace function fleet.create_partitions(p_from date, p_to date) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
begin
  if p_from is null or p_to is null or p_from > p_to or p_to - p_from > 4000 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot create partitions from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a first and a last day, in order, at most 4000 days apart: select fleet.create_partitions(''2026-08-01'', ''2026-08-31'').';
  end if;

  perform fleet.sync_partitions();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));

  perform fleet.ensure_partitions(array(
    select distinct date_trunc(case s.cadence when 'monthly' then 'month' else 'day' end, d.day) as range_start
    from generate_series(p_from::timestamptz, p_to::timestamptz, interval '1 day') as d (day)
    cross join fleet.settings s
    where not exists (
      select from fleet.attached_partitions() a
      where a.range_start < d.day + interval '1 day' and a.range_end > d.day
    )
    -- A retired day is not made anew beside its archive: fleet.request_restore() brings it back.
    and not exists (
      select from fleet.hb_partitions p
      where p.state not in ('active', 'restored')
        and not (p.state = 'dropped' and p.row_count = 0)
        and p.range_start < d.day + interval '1 day' and p.range_end > d.day
    )
    order by range_start
  ));

  perform fleet.sync_partitions();
  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Makes the partitions that are missing between two days, both included, and returns their names. Retired days are left to fleet.request_restore(). Example: select fleet.create_partitions(current_date, current_date + 30);';
--! EndIncluded functions/create_partitions.sql
--! Included functions/set_up_partitions.sql
create or replace function fleet.set_up_partitions(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_settings fleet.settings;
  v_partman_major integer;
  v_interval text;
  v_first date;
begin
  select * into strict v_settings from fleet.settings;
  select split_part(extversion, '.', 1)::integer into v_partman_major
  from pg_extension
  where extname = 'pg_partman';
  if v_partman_major is null then
    raise exception using
      errcode = 'FL002',
      message = 'pg_partman is not installed in this database',
      hint = 'Run sql/extensions.sql as a superuser, or: create extension pg_partman schema partman;';
  end if;
  if exists (select from partman.part_config where parent_table = 'fleet.device_heartbeats') then
    return 0;
  end if;

  v_interval := case v_settings.cadence when 'monthly' then '1 month' else '1 day' end;
  v_first := (p_now - v_settings.retention)::date;
  if v_partman_major >= 5 then
    execute $call$
      select partman.create_parent(
        p_parent_table => $1, p_control => 'ts', p_type => 'range', p_interval => $2, p_premake => $3,
        p_start_partition => $4, p_template_table => $5, p_default_table => false, p_jobmon => false
      )
    $call$ using 'fleet.device_heartbeats', v_interval, v_settings.premake_days, v_first::text, 'fleet.device_heartbeats_template';
  else
    execute $call$
      select partman.create_parent(
        p_parent_table => $1, p_control => 'ts', p_type => 'native', p_interval => $2, p_premake => $3,
        p_start_partition => $4, p_template_table => $5, p_jobmon => false
      )
    $call$ using 'fleet.device_heartbeats', v_interval, v_settings.premake_days, v_first::text, 'fleet.device_heartbeats_template';
    -- Rows in a default partition would block premake and retention; fleet.ingest() quarantines them instead.
    drop table fleet.device_heartbeats_default;
  end if;

  update partman.part_config
  set infinite_time_partitions = true,  -- or an idle fleet gets no new partitions
    inherit_privileges = true,
    retention = null,  -- fleet.nightly() retires, in transactions of its own
    retention_schema = 'fleet_detached',
    retention_keep_table = true
  where parent_table = 'fleet.device_heartbeats';

  return fleet.sync_partitions();
end
$$;

comment on function fleet.set_up_partitions(timestamptz) is
  'Hands fleet.device_heartbeats to pg_partman (4.7 or 5): from the retention back to premake_days ahead, no default partition. Returns how many partitions were made; 0 when it was done before.';
--! EndIncluded functions/set_up_partitions.sql
--! Included functions/premake.sql
create or replace function fleet.premake(p_now timestamptz default now()) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
  v_from date;
  v_to date;
begin
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));
  select greatest((p_now - s.retention)::date, coalesce((select min(a.range_start)::date from fleet.attached_partitions() a), p_now::date)),
    p_now::date + s.premake_days
  into strict v_from, v_to
  from fleet.settings s;

  perform partman.run_maintenance(p_parent_table => 'fleet.device_heartbeats', p_analyze => false, p_jobmon => false);

  -- run_maintenance only adds at the far end, by the real clock, and reports "already running" as success: what is still
  -- missing is made by name, also the days that a long outage left out, for devices that send late.
  perform fleet.create_partitions(v_from, v_to);

  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.premake(timestamptz) is
  'Makes the partitions up to premake_days ahead, and those missing within the retention, and returns their names. Run by fleet.maintain().';
--! EndIncluded functions/premake.sql
--! Included functions/record_last_status.sql
-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500. In device_id order: concurrent batches of
-- the same devices deadlock otherwise.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.device_last_status as ls (
    device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, status
  )
  select distinct on (n.device_id)
    n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip,
    case when n.unity_running is false then 'unity_down' else 'ok' end
  from new_rows n
  order by n.device_id, n.ts desc
  on conflict (device_id) do update
    set last_ts = excluded.last_ts,
      last_received_at = excluded.last_received_at,
      battery_pct = excluded.battery_pct,
      network_type = excluded.network_type,
      unity_running = excluded.unity_running,
      signal_dbm = excluded.signal_dbm,
      agent_version = excluded.agent_version,
      ip = excluded.ip,
      status = excluded.status
    -- A late arrival must not rewind a device.
    where ls.last_ts is null or ls.last_ts < excluded.last_ts;
  return null;
end
$$;

comment on function fleet.record_last_status() is
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device.';
--! EndIncluded functions/record_last_status.sql
--! Included functions/quarantine.sql
create or replace function fleet.quarantine(
  p_batch json,
  p_received_at timestamptz,
  p_device_ids bigint[],
  p_tss timestamptz[],
  p_reasons text[],
  p_results text[]
) returns text[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_results text[];
begin
  insert into fleet.heartbeat_quarantine (received_at, device_id, ts, reason, payload)
  select p_received_at, r.device_id, r.ts, r.reason, e.value::jsonb
  from (
    select u.device_id, u.ts, u.reason, min(u.item) as item,
      dense_rank() over (partition by u.device_id order by u.ts, u.reason) as nth
    from unnest(p_device_ids, p_tss, p_reasons) with ordinality as u (device_id, ts, reason, item)
    where u.reason is not null
    group by u.device_id, u.ts, u.reason
  ) r
  join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
  cross join fleet.settings s
  where r.nth + (select count(*) from fleet.heartbeat_quarantine q where q.device_id = r.device_id) <= s.quarantine_per_device
  order by r.device_id, r.ts, r.reason
  on conflict do nothing;

  select array_agg(
    coalesce(u.result, case when q.device_id is null then 'rejected' else 'quarantined' end)
    order by u.item
  )
  into v_results
  from unnest(p_device_ids, p_tss, p_reasons, p_results) with ordinality as u (device_id, ts, reason, result, item)
  left join fleet.heartbeat_quarantine q
    on u.result is null and q.device_id = u.device_id and q.ts = u.ts and q.reason = u.reason;

  -- The mark comes last and waits for nobody: a row that another batch is writing is left to that batch.
  update fleet.device_last_status ls
  set status = 'clock_skewed', last_received_at = p_received_at
  from (
    select l.device_id
    from fleet.device_last_status l
    where l.device_id in (
      select u.device_id
      from unnest(p_device_ids, p_reasons) as u (device_id, reason)
      group by u.device_id
      having bool_and(coalesce(u.reason in ('too_late', 'in_future'), false))
    )
    for update skip locked
  ) l
  where ls.device_id = l.device_id;

  return v_results;
end
$$;

comment on function fleet.quarantine(json, timestamptz, bigint[], timestamptz[], text[], text[]) is
  'Keeps the refused items of a batch aside and marks devices that sent nothing else; returns the results with theirs filled in. Called by fleet.ingest().';
--! EndIncluded functions/quarantine.sql
--! Included functions/ingest.sql
create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off  -- measured: compiling took a batch from 140 to 4 a second
as $$
#variable_conflict use_column
declare
  v_results text[];
  v_reasons text[];
  v_tss timestamptz[];
  v_device_ids bigint[];
begin
  -- Twice at most: a partition can be retired between the look at fleet.hb_partitions and the insert (23514).
  for v_try in 1..2 loop
    begin
      with given as materialized (
        select i.item, i.device_id, coalesce(i.ts, p_received_at) as ts, i.battery_pct, i.network_type, i.unity_running,
          i.signal_dbm, i.agent_version,
          case s.store_ip
            when 'full' then i.ip
            when 'prefix' then network(set_masklen(i.ip, case family(i.ip) when 4 then 24 else 48 end))::inet
          end as ip,
          p_received_at - least(s.max_late, s.retention) as oldest,
          p_received_at + s.max_future as newest
        from rows from (
          json_to_recordset(p_batch) as (
            device_id bigint, ts timestamptz, battery_pct smallint, network_type text, unity_running boolean,
            signal_dbm smallint, agent_version text, ip inet
          )
        ) with ordinality as i (
          device_id, ts, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, item
        )
        cross join fleet.settings s
      ),
      days as materialized (  -- bounds are UTC midnights, so a day is wholly inside a partition or outside
        select d.day,
          exists (
            select from fleet.hb_partitions p
            where p.range_start <= d.day and p.range_end > d.day
              and p.state in ('active', 'restored') and p.relid is not null
          ) as has_partition
        from (select distinct date_trunc('day', g.ts) as day from given g where g.ts between g.oldest and g.newest) d
      ),
      judged as materialized (
        select g.*,
          case
            when g.ts < g.oldest then 'too_late'
            when g.ts > g.newest then 'in_future'
            when not d.has_partition then 'no_partition'
          end as reason,
          row_number() over (
            partition by
              g.device_id,
              date_bin('10 seconds', g.ts, timestamptz '2000-01-01 00:00:00+00'),
              g.ts between g.oldest and g.newest  -- a refused neighbour takes no bucket
            order by g.item
          ) = 1 as is_first
        from given g
        left join days d on d.day = date_trunc('day', g.ts)
      ),
      stored as (
        insert into fleet.device_heartbeats (
          ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip
        )
        select j.ts, p_received_at, j.device_id, j.signal_dbm, j.battery_pct, j.unity_running, j.network_type,
          j.agent_version, j.ip
        from judged j
        where j.reason is null and j.is_first
        order by j.device_id, j.ts  -- the same order in every batch: no deadlock
        on conflict do nothing
        returning device_id, ts
      )
      select
        array_agg(case when j.reason is null then case when s.ts is null then 'duplicate' else 'stored' end end order by j.item),
        array_agg(j.reason order by j.item),
        array_agg(j.ts order by j.item),
        array_agg(j.device_id order by j.item)
      into v_results, v_reasons, v_tss, v_device_ids
      from judged j
      left join stored s on s.device_id = j.device_id and s.ts = j.ts and j.is_first;
      exit;
    exception when check_violation then
      if v_try = 2 then
        raise;
      end if;
      perform fleet.sync_partitions();
    end;
  end loop;

  -- After the heartbeats and last status, in every batch: locks are taken in one order, so that batches do not deadlock.
  if array_position(v_results, null) is not null then
    v_results := fleet.quarantine(p_batch, p_received_at, v_device_ids, v_tss, v_reasons, v_results);
  end if;

  return query
    select u.item::integer, u.result, case u.result when 'rejected' then 'quarantine_full' else u.reason end, u.ts
    from unnest(v_results, v_reasons, v_tss) with ordinality as u (result, reason, ts, item);
end
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement: a JSON array of {device_id, ts, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip}. Answers each item in order: stored, duplicate (same device and 10-second bucket), quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded functions/ingest.sql
--! Included functions/replay_quarantine.sql
-- Each batch goes through fleet.ingest() again with the time at which it arrived: what is judged otherwise today (its
-- partition is there, max_late was raised) is stored, the rest stays.
create or replace function fleet.replay_quarantine(
  p_from timestamptz default '-infinity',
  p_to timestamptz default 'infinity',
  p_device_id bigint default null,
  out stored bigint,
  out duplicate bigint,
  out remaining bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  v_batch record;
  v_stored bigint;
  v_duplicate bigint;
begin
  if p_from is null or p_to is null or p_from > p_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot replay from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give the first and the last ts, in order: select * from fleet.replay_quarantine(''2026-08-15'', ''2026-08-16'');';
  end if;
  stored := 0;
  duplicate := 0;
  remaining := 0;
  for v_batch in
    select q.received_at,
      -- ts as it was judged: without one in the payload, the time of arrival.
      json_agg(q.payload || jsonb_build_object('device_id', q.device_id, 'ts', q.ts) order by q.device_id, q.ts, q.reason) as items,
      array_agg(q.device_id order by q.device_id, q.ts, q.reason) as device_ids,
      array_agg(q.ts order by q.device_id, q.ts, q.reason) as tss,
      array_agg(q.reason order by q.device_id, q.ts, q.reason) as reasons
    from fleet.heartbeat_quarantine q
    where q.ts >= p_from and q.ts < p_to
      and (p_device_id is null or q.device_id = p_device_id)
      and exists (
        select from fleet.hb_partitions p
        where p.range_start <= q.ts and p.range_end > q.ts and p.state in ('active', 'restored') and p.relid is not null
      )
    group by q.received_at
    order by q.received_at
  loop
    with answered as (
      select i.result, k.device_id, k.ts, k.reason
      from fleet.ingest(v_batch.items, v_batch.received_at) i
      join unnest(v_batch.device_ids, v_batch.tss, v_batch.reasons) with ordinality as k (device_id, ts, reason, item)
        on k.item = i.item
    ),
    gone as (
      delete from fleet.heartbeat_quarantine q
      using answered a
      where a.result in ('stored', 'duplicate') and q.device_id = a.device_id and q.ts = a.ts and q.reason = a.reason
    )
    select count(*) filter (where a.result = 'stored'), count(*) filter (where a.result = 'duplicate')
    into v_stored, v_duplicate
    from answered a;
    stored := stored + v_stored;
    duplicate := duplicate + v_duplicate;
  end loop;

  select count(*) into remaining
  from fleet.heartbeat_quarantine q
  where q.ts >= p_from and q.ts < p_to and (p_device_id is null or q.device_id = p_device_id);
  perform fleet.record_event(
    'quarantine.replay', p_rows => stored, p_detail => format('%s duplicates, %s remaining', duplicate, remaining)
  );
end
$$;

comment on function fleet.replay_quarantine(timestamptz, timestamptz, bigint) is
  'Stores quarantined heartbeats, by ts, whose partition is there by now (made, or restored) and whose lateness is allowed by now; answers how many were stored, were there already, and remain. Example: select * from fleet.replay_quarantine(''2026-08-15'', ''2026-08-16'');';
--! EndIncluded functions/replay_quarantine.sql
--! Included functions/retention_plan.sql
create or replace function fleet.retention_plan(p_retention interval default null, p_now timestamptz default now())
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, state text, row_count bigint, bytes_size bigint,
  action text, reason text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p.partition_name, p.range_start, p.range_end, p.state,
    coalesce(p.row_count, greatest(c.reltuples, 0)::bigint),
    pg_total_relation_size(p.relid),
    case
      when p.range_end > p_now - r.retention then 'keep'
      when p.held_reason is not null or p.state = 'restored' then 'hold'
      else 'retire'
    end,
    case
      when p.range_end > p_now - r.retention and p.range_start > p_now then 'made ahead'
      when p.range_end > p_now - r.retention then format('not wholly older than %s', r.retention)
      when p.held_reason is not null then format('held: %s', p.held_reason)
      when p.state = 'restored' then 'restored from the archive; release it with fleet.release_partition()'
      else format('all of it is older than %s', r.retention)
    end
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  cross join (
    select coalesce(p_retention, s.retention) as retention
    from fleet.settings s
  ) r
  where p.state in ('active', 'restored')
  order by p.range_start;
$$;

comment on function fleet.retention_plan(interval, timestamptz) is
  'What a retention would do, partition by partition, and why; changes nothing. Example: select * from fleet.retention_plan(''60 days'') where action = ''retire'';';
--! EndIncluded functions/retention_plan.sql
--! Included functions/set_retention.sql
create or replace function fleet.set_retention(p_retention interval) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval;
  v_retire bigint;
begin
  if p_retention is null or p_retention < interval '1 day' or p_retention > interval '3650 days' then
    raise exception using
      errcode = 'FL422',
      message = format('retention %s is not between 1 day and 3650 days', coalesce(p_retention::text, 'null')),
      hint = 'Example: select fleet.set_retention(''60 days''); see first: select * from fleet.retention_plan(''60 days'');';
  end if;
  select retention into strict v_old from fleet.settings for update;
  update fleet.settings
  set retention = p_retention
  where retention is distinct from p_retention;
  select count(*) into v_retire from fleet.retention_plan(p_retention) where action = 'retire';
  return format('retention %s (was %s); the next nightly run retires %s partitions', p_retention, v_old, v_retire);
end
$$;

comment on function fleet.set_retention(interval) is
  'Sets how long heartbeats stay online, for the next nightly run, and says what that will retire. Example: select fleet.set_retention(''60 days'');';
--! EndIncluded functions/set_retention.sql
--! Included functions/set_premake.sql
create or replace function fleet.set_premake(p_days integer) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old integer;
begin
  if p_days is null or p_days not between 1 and 90 then
    raise exception using
      errcode = 'FL422',
      message = format('premake %s is not between 1 and 90 days', coalesce(p_days::text, 'null')),
      hint = 'Example: select fleet.set_premake(14);';
  end if;
  select premake_days into strict v_old from fleet.settings for update;
  update fleet.settings
  set premake_days = p_days
  where premake_days is distinct from p_days;
  update partman.part_config
  set premake = p_days
  where parent_table = 'fleet.device_heartbeats' and premake is distinct from p_days;
  return format('premake %s days (was %s); the next hourly run makes what is missing', p_days, v_old);
end
$$;

comment on function fleet.set_premake(integer) is
  'Sets how many days ahead partitions are made. Example: select fleet.set_premake(14);';
--! EndIncluded functions/set_premake.sql
--! Included functions/get_partition.sql
create or replace function fleet.get_partition(p_partition text) returns fleet.hb_partitions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  select * into v_partition from fleet.hb_partitions where partition_name = p_partition for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no partition %s', coalesce(p_partition, 'null')),
      hint = 'Names are in: select partition_name, range_start, state from fleet.partition_health;';
  end if;
  return v_partition;
end
$$;

comment on function fleet.get_partition(text) is
  'The row of fleet.hb_partitions, locked; an error with a hint when there is none.';
--! EndIncluded functions/get_partition.sql
--! Included functions/hand_to_archiver.sql
create or replace function fleet.hand_to_archiver(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('alter table fleet_detached.%I owner to fleet_archiver', p_partition);
  -- Read-only, for its owner too: what was proven is what is there. (The archiver's role VACUUMs and reads.)
  execute format('revoke all on fleet_detached.%I from public, fleet_owner, fleet_server, fleet_reader, fleet_dba', p_partition);
  execute format('revoke insert, update, delete, truncate, references, trigger on fleet_detached.%I from fleet_archiver', p_partition);
  execute format('grant select on fleet_detached.%I to fleet_owner, fleet_dba, fleet_reader', p_partition);
end
$$;

comment on function fleet.hand_to_archiver(text) is
  'Makes a table in fleet_detached the archiver''s, and read-only.';
--! EndIncluded functions/hand_to_archiver.sql
--! Included functions/retire_partition.sql
-- pg_partman detaches by age alone. What is as old but has to stay attached (held and restored days) is set aside and
-- put back in the same transaction, under the parent's lock that the detach takes anyway; its CHECK constraint makes
-- putting it back a matter of the catalog.
create or replace function fleet.retire_partition(p_partition text, p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_kept fleet.hb_partitions;
  v_aside fleet.hb_partitions[];
  v_rows bigint;
  v_bytes bigint;
  v_since timestamptz := clock_timestamp();
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'active' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s, not active, and cannot be retired', p_partition, v_partition.state),
      hint = case v_partition.state
        when 'restored' then format('Release it first: select fleet.release_partition(%L);', p_partition)
        else 'It is retired already; see select * from fleet.partition_health.'
      end;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and cannot be retired', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if v_partition.relid is null or v_partition.range_end > p_now then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s ends at %s and may still receive heartbeats', p_partition, v_partition.range_end),
      hint = 'Only a partition that is wholly past can be retired.';
  end if;

  -- Counts first, detach last: the parent is locked for the catalog change only.
  execute format('select count(*) from fleet.%I', p_partition) into v_rows;
  v_bytes := pg_total_relation_size(v_partition.relid);

  v_aside := array(
    select p
    from fleet.hb_partitions p
    where p.state in ('active', 'restored')
      and p.relid is not null
      and p.partition_name <> p_partition
      and p.range_start < v_partition.range_start
    order by p.range_start
  );
  foreach v_kept in array v_aside loop
    execute format('alter table fleet.device_heartbeats detach partition fleet.%I', v_kept.partition_name);
  end loop;

  perform partman.drop_partition_time(
    p_parent_table => 'fleet.device_heartbeats',
    p_retention => interval '0',
    p_keep_table => true,
    p_keep_index => true,
    p_retention_schema => 'fleet_detached',
    p_reference_timestamp => v_partition.range_end + interval '1 microsecond'
  );

  foreach v_kept in array v_aside loop
    execute format(
      'alter table fleet.device_heartbeats attach partition fleet.%I for values from (%L) to (%L)',
      v_kept.partition_name, v_kept.range_start, v_kept.range_end
    );
  end loop;

  if to_regclass(format('fleet_detached.%I', p_partition)) is distinct from v_partition.relid::regclass then
    raise exception using
      errcode = 'FL002',
      message = format('pg_partman did not retire partition %s', p_partition),
      hint = 'Another maintenance run of pg_partman may hold its lock; try again in a moment.';
  end if;
  perform fleet.hand_to_archiver(p_partition);

  update fleet.hb_partitions
  set state = 'detached', step = null, detached_at = now(), bytes_size = v_bytes,
    -- Of a day that was archived before, the count is the archive's until the next export.
    row_count = case when archive_url is null then v_rows else row_count end,
    attempts = 0, next_attempt_at = now(), last_error = null
  where partition_name = p_partition;
  perform fleet.record_event('partition.detach', p_partition, v_rows, fleet.elapsed_ms(v_since));
  return v_rows;
end
$$;

comment on function fleet.retire_partition(text, timestamptz) is
  'Counts a past partition, has pg_partman detach it into fleet_detached, and leaves it to the archiver. Returns its rows. Run by fleet.nightly() and fleet.archive_partition().';
--! EndIncluded functions/retire_partition.sql
--! Included functions/wake_archiver.sql
create or replace function fleet.wake_archiver(p_reason text default 'work pending') returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.hb_partitions p
    where p.state in ('detached', 'archiving', 'archive_failed', 'archived') and p.held_reason is null
  ) and not exists (
    select from fleet.restore_items i where i.state in ('pending', 'running')
  ) then
    return false;
  end if;
  perform pg_notify('fleet_archiver', p_reason);
  return true;
end
$$;

comment on function fleet.wake_archiver(text) is
  'Notifies the archiver when there is work for it; returns whether there is. Run by pg_cron every ten minutes.';
--! EndIncluded functions/wake_archiver.sql
--! Included functions/retry_archive.sql
create or replace function fleet.retry_archive(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state in ('active', 'restored') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; there is no failed archive to retry', p_partition, v_partition.state),
      hint = format('To archive it: select fleet.archive_partition(%L);', p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is %s already', p_partition, v_partition.state);
  end if;
  update fleet.hb_partitions
  set attempts = 0, next_attempt_at = now()
  where partition_name = p_partition and state = 'archive_failed';
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s waits for the archiver', p_partition);
end
$$;

comment on function fleet.retry_archive(text) is
  'Lets the archiver try a failed partition again at once. Example: select fleet.retry_archive(''device_heartbeats_p2026_08_15'');';
--! EndIncluded functions/retry_archive.sql
--! Included functions/archive_partition.sql
create or replace function fleet.archive_partition(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'archive_failed' then
    return fleet.retry_archive(p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is %s already', p_partition, v_partition.state);
  end if;
  if v_partition.state in ('active', 'restored') then
    perform fleet.retire_partition(p_partition);
  end if;
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s waits for the archiver', p_partition);
end
$$;

comment on function fleet.archive_partition(text) is
  'Retires one past partition now and wakes the archiver. Example: select fleet.archive_partition(''device_heartbeats_p2026_08_15'');';
--! EndIncluded functions/archive_partition.sql
--! Included functions/bind_range.sql
create or replace function fleet.bind_range(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_constraint text := 'device_heartbeats_within_range';
begin
  v_partition := fleet.get_partition(p_partition);
  if not exists (
    select from pg_constraint where conrelid = v_partition.relid and conname = v_constraint and convalidated
  ) then
    execute format(
      'alter table %s drop constraint if exists %I, add constraint %2$I check (ts >= %L and ts < %L)',
      v_partition.relid::regclass, v_constraint, v_partition.range_start, v_partition.range_end
    );
  end if;
end
$$;

comment on function fleet.bind_range(text) is
  'Gives a partition a CHECK constraint equal to its bounds, so that attaching it again needs no scan.';
--! EndIncluded functions/bind_range.sql
--! Included functions/hold_partition.sql
create or replace function fleet.hold_partition(p_partition text, p_reason text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format('a reason is needed to hold partition %s', coalesce(p_partition, 'null')),
      hint = format('Example: select fleet.hold_partition(%L, ''legal hold, case 4711'');', p_partition);
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'dropped' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is dropped; its rows are in %s', p_partition, v_partition.archive_url),
      hint = format('Bring it back first: select fleet.request_restore(%L);', v_partition.range_start::date);
  end if;
  if v_partition.state in ('active', 'restored') then
    perform fleet.bind_range(p_partition);
  end if;
  update fleet.hb_partitions
  set held_reason = p_reason, held_by = session_user
  where partition_name = p_partition;
  perform fleet.record_event('partition.hold', p_partition, p_detail => p_reason);
  return format('partition %s is held: %s', p_partition, p_reason);
end
$$;

comment on function fleet.hold_partition(text, text) is
  'Keeps a partition from being retired, archived or dropped, until released. Example: select fleet.hold_partition(''device_heartbeats_p2026_08_15'', ''legal hold'');';
--! EndIncluded functions/hold_partition.sql
--! Included functions/release_partition.sql
create or replace function fleet.release_partition(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.held_reason is null and v_partition.state <> 'restored' then
    return format('partition %s is not held', p_partition);
  end if;
  -- A restored day becomes an active one: old enough, it is retired and proven again by the next night.
  update fleet.hb_partitions
  set held_reason = null, held_by = null, state = case state when 'restored' then 'active' else state end
  where partition_name = p_partition;
  perform fleet.record_event('partition.release', p_partition);
  return format('partition %s is released', p_partition);
end
$$;

comment on function fleet.release_partition(text) is
  'Ends a hold, or the stay of a restored day. Example: select fleet.release_partition(''device_heartbeats_p2026_08_15'');';
--! EndIncluded functions/release_partition.sql
--! Included functions/check_lease.sql
create or replace function fleet.check_lease(p_partition text, p_worker text) returns fleet.hb_partitions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'archiving' or v_partition.lease_owner is distinct from p_worker then
    raise exception using
      errcode = 'FL003',
      message = format(
        'partition %s is %s and leased to %s, not to %s',
        p_partition, v_partition.state, coalesce(v_partition.lease_owner, 'nobody'), p_worker
      ),
      hint = 'The lease ran out and another archiver took it: stop working on this partition.';
  end if;
  return v_partition;
end
$$;

comment on function fleet.check_lease(text, text) is
  'The partition''s row, locked, if this archiver holds its lease; else an error.';
--! EndIncluded functions/check_lease.sql
--! Included functions/claim_partition.sql
create or replace function fleet.claim_partition(p_worker text, p_lease interval default '5 minutes')
returns table (
  partition_name text, relid oid, table_name text, range_start timestamptz, range_end timestamptz, state text, step text,
  attempts integer, row_count bigint, content_checksum numeric, checksum_sha256 text, archive_url text,
  archive_bytes bigint, min_ts timestamptz, max_ts timestamptz
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_name text;
begin
  select p.partition_name into v_name
  from fleet.hb_partitions p
  cross join fleet.settings s
  where p.held_reason is null
    and (p.lease_until is null or p.lease_until < now())
    and (
      p.state in ('detached', 'archiving')
      or (p.state = 'archive_failed' and p.next_attempt_at <= now())
      or (p.state = 'archived' and p.proven_at + s.archive_grace <= now())
    )
  order by p.range_start
  limit 1
  for update of p skip locked;
  if not found then
    return;
  end if;

  update fleet.hb_partitions p
  set state = case p.state when 'archived' then 'archived' else 'archiving' end,
    step = coalesce(p.step, 'claimed'),
    lease_owner = p_worker,
    lease_until = now() + p_lease
  where p.partition_name = v_name;
  perform fleet.record_event('partition.archive.start', v_name, p_detail => p_worker)
  from fleet.hb_partitions p
  where p.partition_name = v_name and p.state = 'archiving';

  return query
    select p.partition_name, p.relid, format('fleet_detached.%I', p.partition_name), p.range_start, p.range_end, p.state,
      p.step, p.attempts, p.row_count, p.content_checksum, p.checksum_sha256, p.archive_url, p.archive_bytes, p.min_ts,
      p.max_ts
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_partition(text, interval) is
  'Leases the oldest partition that waits to be archived or dropped to this archiver; no row when there is none.';
--! EndIncluded functions/claim_partition.sql
--! Included functions/renew_lease.sql
create or replace function fleet.renew_lease(p_partition text, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.hb_partitions
    set lease_until = now() + p_lease
    where partition_name = p_partition and lease_owner = p_worker and state in ('archiving', 'archived')
    returning partition_name
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_lease(text, text, interval) is
  'Prolongs an archiver''s lease; false when another has it.';
--! EndIncluded functions/renew_lease.sql
--! Included functions/release_lease.sql
create or replace function fleet.release_lease(p_partition text, p_worker text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update fleet.hb_partitions
  set state = case state when 'archiving' then 'detached' else state end, lease_owner = null, lease_until = null
  where partition_name = p_partition and lease_owner = p_worker and state in ('archiving', 'archived');
$$;

comment on function fleet.release_lease(text, text) is
  'Gives a partition back, with the steps that were finished: an archiver that is stopped does so.';
--! EndIncluded functions/release_lease.sql
--! Included functions/record_frozen.sql
create or replace function fleet.record_frozen(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.check_lease(p_partition, p_worker);
  update fleet.hb_partitions
  set step = 'frozen'
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_frozen(text, text) is 'Archiving, step frozen: VACUUM (FREEZE) is done.';
--! EndIncluded functions/record_frozen.sql
--! Included functions/record_export.sql
create or replace function fleet.record_export(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if p_min_ts < v_partition.range_start or p_max_ts >= v_partition.range_end then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s covers %s to %s, its export %s to %s',
        p_partition, v_partition.range_start, v_partition.range_end, p_min_ts, p_max_ts
      ),
      hint = 'The table was changed after it was retired. Hold it and look: select fleet.hold_partition(name, reason);';
  end if;
  update fleet.hb_partitions
  set step = 'exported', row_count = p_row_count, content_checksum = p_content_checksum, min_ts = p_min_ts, max_ts = p_max_ts,
    checksum_sha256 = null, archive_url = null, archive_bytes = null, proven_at = null
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz) is
  'Archiving, step exported: rows, checksum and bounds of the snapshot that was copied.';
--! EndIncluded functions/record_export.sql
--! Included functions/record_upload.sql
create or replace function fleet.record_upload(
  p_partition text,
  p_worker text,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_partition.step not in ('exported', 'uploaded') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is at step %s; it is exported before it is uploaded', p_partition, v_partition.step);
  end if;
  update fleet.hb_partitions
  set step = 'uploaded', archive_url = p_archive_url, checksum_sha256 = p_checksum_sha256, archive_bytes = p_archive_bytes
  where partition_name = p_partition;
  perform fleet.count_up('archive_bytes_pushed_total', p_archive_bytes);
end
$$;

comment on function fleet.record_upload(text, text, text, text, bigint) is
  'Archiving, step uploaded: where the Parquet file is, its SHA-256 and size.';
--! EndIncluded functions/record_upload.sql
--! Included functions/record_proof.sql
create or replace function fleet.record_proof(
  p_partition text,
  p_worker text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_partition.step is distinct from 'uploaded' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is at step %s; it is uploaded before it is proven', p_partition, v_partition.step);
  end if;
  if (p_checksum_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.content_checksum, v_partition.row_count, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the archive of %s read back differs from its rows; the partition is kept', p_partition),
      detail = format(
        'sha256 %s, read back %s; content checksum %s, read back %s; rows %s, read back %s; from %s to %s, read back %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256, v_partition.content_checksum, p_content_checksum,
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = 'The next attempt exports and uploads it anew. If it happens again, check the object store.';
  end if;
  update fleet.hb_partitions
  set step = 'proven', state = 'archived', proven_at = now(), archived_at = now(), attempts = 0, next_attempt_at = null,
    last_error = null
  where partition_name = p_partition;
  perform fleet.count_up('partitions_archived_total');
  perform fleet.count_up('hb_partition_archived_total');
  perform fleet.record_event(
    'partition.archive.end', p_partition, p_row_count, p_detail => v_partition.archive_url,
    p_duration_ms => fleet.elapsed_ms(coalesce(
      (
        select max(e.at) from fleet.events e
        where e.event = 'partition.archive.start' and e.partition_name = p_partition
      ),
      clock_timestamp()
    ))
  );
end
$$;

comment on function fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz) is
  'Archiving, step proven: compares what was read back from the store with what was exported, and only if all is equal sets state archived.';
--! EndIncluded functions/record_proof.sql
--! Included functions/record_failure.sql
create or replace function fleet.record_failure(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_max_attempts integer;
  v_attempts integer;
begin
  select archive_max_attempts into strict v_max_attempts from fleet.settings;
  update fleet.hb_partitions
  set state = case state when 'archiving' then 'archive_failed' else state end,
    -- An archive that failed its proof is made anew from the rows.
    step = case state when 'archiving' then null else step end,
    attempts = attempts + 1,
    -- 1, 2, 4, ... minutes; after the last, fleet.nightly() tries again.
    next_attempt_at = case
      when attempts + 1 < v_max_attempts then now() + least(interval '1 minute' * (2 ^ least(attempts, 10)), interval '1 hour')
    end,
    last_error = p_error,
    lease_owner = null,
    -- Archived, but could not be dropped: left alone for as long.
    lease_until = case state
      when 'archived' then now() + least(interval '1 minute' * (2 ^ least(attempts, 10)), interval '1 hour')
    end
  where partition_name = p_partition and lease_owner = p_worker and state in ('archiving', 'archived')
  returning attempts into v_attempts;
  if not found then
    return;
  end if;
  perform fleet.count_up('archive_failures_total');
  perform fleet.record_event('partition.archive.failed', p_partition, p_detail => p_error, p_is_ok => false);
end
$$;

comment on function fleet.record_failure(text, text, text) is
  'Archiving failed: keeps the reason and when to try again. The partition itself is kept.';
--! EndIncluded functions/record_failure.sql
--! Included functions/drop_partition.sql
create or replace function fleet.drop_partition(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_grace interval;
  v_rows bigint;
  v_since timestamptz := clock_timestamp();
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'dropped' then
    return true;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and is not dropped', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if v_partition.state <> 'archived' then
    raise exception using
      errcode = 'FL001',
      message = format('partition %s is %s and has no proven archive; it is not dropped', p_partition, v_partition.state),
      hint = format('Run select fleet.archive_partition(%L); and wait for state archived.', p_partition);
  end if;
  select archive_grace into strict v_grace from fleet.settings;
  if now() < v_partition.proven_at + v_grace then
    return false;
  end if;

  if v_partition.relid is not null and exists (select from pg_class where oid = v_partition.relid) then
    -- Only who may write may LOCK TABLE, and nobody may write here: this changes nothing and takes the same lock.
    execute format('alter table %s disable row level security', v_partition.relid::regclass);
    execute format('select count(*) from %s', v_partition.relid::regclass) into v_rows;
    if v_rows is distinct from v_partition.row_count then
      raise exception using
        errcode = 'FL010',
        message = format(
          'partition %s has %s rows and its archive %s; it is not dropped', p_partition, v_rows, v_partition.row_count
        ),
        hint = 'Someone wrote to it after the proof. Keep it and look: fleet.hold_partition().';
    end if;
    execute format('drop table %s', v_partition.relid::regclass);
  end if;

  update fleet.hb_partitions
  set state = 'dropped', relid = null, dropped_at = now(), lease_owner = null, lease_until = null, bytes_size = 0
  where partition_name = p_partition;
  perform fleet.count_up('hb_partition_dropped_total');
  perform fleet.record_event('partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(v_since));
  return true;
end
$$;

comment on function fleet.drop_partition(text) is
  'Drops a retired partition whose archive is proven; refuses any other. True when it is gone, false while archive_grace lasts. Example: select fleet.drop_partition(''device_heartbeats_p2026_08_15'');';
--! EndIncluded functions/drop_partition.sql
--! Included functions/archive_columns.sql
create or replace function fleet.archive_columns(p_table regclass)
returns table (name text, type text, "position" integer)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  select string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ')
  into v_unknown
  from pg_attribute a
  where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    and format_type(a.atttypid, a.atttypmod) not in (
      'timestamp with time zone', 'smallint', 'integer', 'bigint', 'boolean', 'text', 'inet'
    );
  if v_unknown is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be archived: no canonical form for %s', p_table, v_unknown),
      hint = 'Add the type to fleet.archive_columns, fleet.content_checksum and archiver/parquet.ts.';
  end if;
  return query
    select a.attname::text, format_type(a.atttypid, a.atttypmod), (row_number() over (order by a.attnum))::integer
    from pg_attribute a
    where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    order by a.attnum;
end
$$;

comment on function fleet.archive_columns(regclass) is
  'The columns of a partition as they are archived, in order; an error for a type that has no canonical form.';
--! EndIncluded functions/archive_columns.sql
--! Included functions/content_checksum.sql
-- Runs with the caller's rights and in the caller's snapshot: the archiver calls it beside its COPY.
create or replace function fleet.content_checksum(
  p_table regclass,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_canonical text;
begin
  select string_agg(
    format(
      case c.type
        when 'timestamp with time zone' then $f$coalesce((extract(epoch from %1$I) * 1000000)::bigint::text, '~')$f$
        when 'text' then $f$coalesce(octet_length(%1$I) || ':' || %1$I, '~')$f$
        when 'inet' then $f$coalesce(octet_length(abbrev(%1$I)) || ':' || abbrev(%1$I), '~')$f$
        else $f$coalesce(%1$I::text, '~')$f$
      end,
      c.name
    ),
    $f$ || '|' || $f$ order by c.position
  )
  into v_canonical
  from fleet.archive_columns(p_table) c;

  execute format(
    $f$select count(*), coalesce(sum(('x' || left(md5(%s), 15))::bit(60)::bigint), 0), min(ts), max(ts) from %s$f$,
    v_canonical, p_table
  ) into row_count, content_checksum, min_ts, max_ts;
end
$$;

comment on function fleet.content_checksum(regclass) is
  'Rows of a partition, their checksum independent of order and format, and the oldest and newest ts. Example: select * from fleet.content_checksum(''fleet_detached.device_heartbeats_p2026_08_15'');';
--! EndIncluded functions/content_checksum.sql
--! Included functions/archiver_heartbeat.sql
create or replace function fleet.archiver_heartbeat(p_worker text, p_version text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.archivers as a (worker, version)
  values (p_worker, p_version)
  on conflict (worker) do update
    set last_seen_at = now(), version = excluded.version;
$$;

comment on function fleet.archiver_heartbeat(text, text) is 'An archiver says that it is alive.';
--! EndIncluded functions/archiver_heartbeat.sql
--! Included functions/request_restore.sql
create or replace function fleet.request_restore(p_from date, p_to date default null) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_to date := coalesce(p_to, p_from);
  v_request_id bigint;
begin
  if p_from is null or p_from > v_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot restore from %s to %s', coalesce(p_from::text, 'null'), coalesce(v_to::text, 'null')),
      hint = 'Give a first and a last day, in order: select fleet.request_restore(''2026-08-15'', ''2026-08-17'');';
  end if;
  if not exists (
    select from fleet.hb_partitions p
    where p.state = 'dropped' and p.range_start < (v_to + 1)::timestamptz and p.range_end > p_from::timestamptz
  ) then
    raise exception using
      errcode = 'FL404',
      message = format('nothing between %s and %s is in the archive alone', p_from, v_to),
      hint = 'Days that are online, or not dropped yet, need no restore: select * from fleet.data_coverage;';
  end if;

  insert into fleet.restore_requests (from_day, to_day)
  values (p_from, v_to)
  returning request_id into v_request_id;
  insert into fleet.restore_items (request_id, partition_name)
  select v_request_id, p.partition_name
  from fleet.hb_partitions p
  where p.state = 'dropped' and p.range_start < (v_to + 1)::timestamptz and p.range_end > p_from::timestamptz;
  perform pg_notify('fleet_archiver', 'restore');
  return v_request_id;
end
$$;

comment on function fleet.request_restore(date, date) is
  'Has the archiver bring archived days back online; returns the number of the request. Follow it in fleet.restore_items. Example: select fleet.request_restore(''2026-08-15'');';
--! EndIncluded functions/request_restore.sql
--! Included functions/claim_restore.sql
create or replace function fleet.claim_restore(p_worker text, p_lease interval default '5 minutes')
returns table (
  request_id bigint, partition_name text, range_start timestamptz, range_end timestamptz, archive_url text,
  checksum_sha256 text, content_checksum numeric, row_count bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_request_id bigint;
  v_name text;
begin
  -- Asked for twice, and brought back meanwhile by the other request.
  update fleet.restore_items i
  set state = 'done', finished_at = now(), last_error = null
  from fleet.hb_partitions p
  where p.partition_name = i.partition_name and i.state in ('pending', 'running') and p.state <> 'dropped';

  select i.request_id, i.partition_name into v_request_id, v_name
  from fleet.restore_items i
  where (i.state = 'pending' or i.state = 'running' and i.lease_until < now())
    and not exists (
      select from fleet.restore_items o
      where o.partition_name = i.partition_name and o.state = 'running' and o.lease_until >= now()
    )
  order by i.request_id, i.partition_name
  limit 1
  for update skip locked;
  if not found then
    return;
  end if;

  update fleet.restore_items i
  set state = 'running', lease_owner = p_worker, lease_until = now() + p_lease
  where i.request_id = v_request_id and i.partition_name = v_name;

  return query
    select v_request_id, p.partition_name, p.range_start, p.range_end, p.archive_url, p.checksum_sha256, p.content_checksum,
      p.row_count
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_restore(text, interval) is
  'Leases the next partition that was asked back to this archiver; no row when there is none.';
--! EndIncluded functions/claim_restore.sql
--! Included functions/renew_restore_lease.sql
create or replace function fleet.renew_restore_lease(p_partition text, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.restore_items
    set lease_until = now() + p_lease
    where partition_name = p_partition and state = 'running' and lease_owner = p_worker
    returning partition_name
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_restore_lease(text, text, interval) is
  'Prolongs an archiver''s lease of a restore; false when another has it.';
--! EndIncluded functions/renew_restore_lease.sql
--! Included functions/begin_restore.sql
create or replace function fleet.begin_restore(p_partition text, p_worker text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'dropped' or not exists (
    select from fleet.restore_items i
    where i.partition_name = p_partition and i.state = 'running' and i.lease_owner = p_worker
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; %s may not restore it', p_partition, v_partition.state, p_worker),
      hint = 'Claim it first with fleet.claim_restore().';
  end if;
  -- A try that was cut short left its table; the archive is proven, so it may go.
  execute format('drop table if exists fleet_detached.%I', p_partition);
  execute format('create table fleet_detached.%I (like fleet.device_heartbeats including defaults including comments)', p_partition);
  execute format('grant select, insert on fleet_detached.%I to fleet_archiver', p_partition);
  return format('fleet_detached.%I', p_partition);
end
$$;

comment on function fleet.begin_restore(text, text) is
  'Makes the empty table that a restore is copied into, and returns its name.';
--! EndIncluded functions/begin_restore.sql
--! Included functions/finish_restore.sql
create or replace function fleet.finish_restore(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table regclass := to_regclass(format('fleet_detached.%I', p_partition));
  v_got record;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'restored' then
    return;
  end if;
  if v_table is null or v_partition.state <> 'dropped' or not exists (
    select from fleet.restore_items i
    where i.partition_name = p_partition and i.state = 'running' and i.lease_owner = p_worker
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; %s has not begun to restore it', p_partition, v_partition.state, p_worker),
      hint = 'Call fleet.begin_restore() first.';
  end if;

  select * into v_got from fleet.content_checksum(v_table);
  if (v_got.row_count, v_got.content_checksum, v_got.min_ts, v_got.max_ts) is distinct from (
    v_partition.row_count, v_partition.content_checksum, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the restored rows of %s differ from what was archived; it is not attached', p_partition),
      detail = format(
        'rows %s, restored %s; content checksum %s, restored %s',
        v_partition.row_count, v_got.row_count, v_partition.content_checksum, v_got.content_checksum
      ),
      hint = 'Check the object with: npm run archive -- verify';
  end if;

  execute format('alter table %s set schema fleet', v_table);
  update fleet.hb_partitions set relid = v_table where partition_name = p_partition;
  perform fleet.bind_range(p_partition);
  perform partman.inherit_template_properties('fleet.device_heartbeats', 'fleet', p_partition);
  execute format(
    'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
    v_table, v_partition.range_start, v_partition.range_end
  );
  execute format('revoke all on %s from fleet_archiver', v_table);
  execute format('analyze %s', v_table);

  update fleet.hb_partitions
  set state = 'restored', step = null, restored_at = now(), bytes_size = pg_total_relation_size(v_table)
  where partition_name = p_partition;
  update fleet.restore_items
  set state = 'done', finished_at = now(), lease_owner = null, lease_until = null, last_error = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  perform fleet.record_event('partition.restore', p_partition, v_got.row_count);
end
$$;

comment on function fleet.finish_restore(text, text) is
  'Compares the restored rows with what was archived, indexes and attaches them; state restored.';
--! EndIncluded functions/finish_restore.sql
--! Included functions/release_restore.sql
create or replace function fleet.release_restore(p_partition text, p_worker text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update fleet.restore_items
  set state = 'pending', lease_owner = null, lease_until = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
$$;

comment on function fleet.release_restore(text, text) is
  'Gives a restore back for another archiver: one that is stopped does so.';
--! EndIncluded functions/release_restore.sql
--! Included functions/fail_restore.sql
create or replace function fleet.fail_restore(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.restore_items
  set state = 'failed', finished_at = now(), last_error = p_error, lease_owner = null, lease_until = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  if not found then
    return;
  end if;
  if exists (select from fleet.hb_partitions where partition_name = p_partition and state = 'dropped') then
    execute format('drop table if exists fleet_detached.%I', p_partition);
  end if;
  perform fleet.record_event('partition.restore.failed', p_partition, p_detail => p_error, p_is_ok => false);
end
$$;

comment on function fleet.fail_restore(text, text, text) is
  'A restore failed: keeps the reason and removes the half-filled table. The archive is untouched.';
--! EndIncluded functions/fail_restore.sql
--! Included functions/make_token.sql
create or replace function fleet.make_token(p_prefix text) returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  -- Three version 4 UUIDs hold 366 bits from Postgres's strong random source, no extension needed; SHA-256 keeps 256.
  select p_prefix || encode(
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'hex'
  );
$$;

comment on function fleet.make_token(text) is 'A new random token of 256 bits in hex, behind a prefix that tells its kind.';
--! EndIncluded functions/make_token.sql
--! Included functions/hash_token.sql
create or replace function fleet.hash_token(p_token text) returns bytea
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(p_token, 'UTF8'));
$$;

comment on function fleet.hash_token(text) is 'What is stored of a token: its SHA-256.';
--! EndIncluded functions/hash_token.sql
--! Included functions/create_device.sql
create or replace function fleet.create_device(
  p_alias text,
  p_cohort text default 'default',
  out device_id bigint,
  out token text
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.enroll_device(''lobby-tablet-7'');';
  end if;
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Leave it out for the cohort named default.';
  end if;
  token := fleet.make_token('nxd_');
  insert into fleet.devices as d (alias, cohort, token_hash)
  values (p_alias, p_cohort, fleet.hash_token(token))
  on conflict (alias) do nothing
  returning d.device_id into create_device.device_id;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('a device with alias %s is enrolled already', p_alias),
      hint = 'Aliases are unique, also those of revoked devices; choose another.';
  end if;
  insert into fleet.device_last_status (device_id)
  values (create_device.device_id);
end
$$;

comment on function fleet.create_device(text, text) is
  'Enrolls a device; returns its id and its token, which is shown only now. Example: select * from fleet.create_device(''lobby-tablet-7'', ''lobby'');';
--! EndIncluded functions/create_device.sql
--! Included functions/enroll_device.sql
create or replace function fleet.enroll_device(p_alias text, p_cohort text default 'default') returns text
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.token from fleet.create_device(p_alias, p_cohort) d;
$$;

comment on function fleet.enroll_device(text, text) is
  'Enrolls a device and returns its token, which is shown only now. Example: select fleet.enroll_device(''lobby-tablet-7'', ''lobby'');';
--! EndIncluded functions/enroll_device.sql
--! Included functions/revoke_device.sql
create or replace function fleet.revoke_device(p_device_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_revoked_at timestamptz;
begin
  select d.revoked_at into v_revoked_at from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_revoked_at is not null then
    return false;
  end if;
  update fleet.devices
  set revoked_at = now()
  where device_id = p_device_id;
  perform pg_notify('fleet_tokens', 'device:' || p_device_id);
  return true;
end
$$;

comment on function fleet.revoke_device(bigint) is
  'Revokes a device''s token: servers refuse it within a second. False when it was revoked before. Its heartbeats stay. Example: select fleet.revoke_device(42);';
--! EndIncluded functions/revoke_device.sql
--! Included functions/create_gateway_token.sql
create or replace function fleet.create_gateway_token(p_name text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_token('nxg_');
begin
  if p_name is null or btrim(p_name) = '' or length(p_name) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'name must have 1 to 200 characters',
      hint = 'Example: select fleet.create_gateway_token(''warehouse-3'');';
  end if;
  insert into fleet.gateways (gateway_name, token_hash)
  values (p_name, fleet.hash_token(v_token))
  on conflict (gateway_name) do nothing;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('a gateway named %s exists already', p_name),
      hint = 'Names are unique, also those of revoked gateways; choose another.';
  end if;
  return v_token;
end
$$;

comment on function fleet.create_gateway_token(text) is
  'Makes a token that may post heartbeats of any enrolled device; it is shown only now. Example: select fleet.create_gateway_token(''warehouse-3'');';
--! EndIncluded functions/create_gateway_token.sql
--! Included functions/revoke_gateway.sql
create or replace function fleet.revoke_gateway(p_name text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_gateway fleet.gateways;
begin
  select * into v_gateway from fleet.gateways where gateway_name = p_name for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no gateway %s', coalesce(p_name, 'null')),
      hint = 'Gateways are made with fleet.create_gateway_token(name).';
  end if;
  if v_gateway.revoked_at is not null then
    return false;
  end if;
  update fleet.gateways
  set revoked_at = now()
  where gateway_id = v_gateway.gateway_id;
  perform pg_notify('fleet_tokens', 'gateway:' || v_gateway.gateway_id);
  return true;
end
$$;

comment on function fleet.revoke_gateway(text) is
  'Revokes a gateway''s token: servers refuse it within a second. Example: select fleet.revoke_gateway(''warehouse-3'');';
--! EndIncluded functions/revoke_gateway.sql
--! Included functions/authenticate.sql
create or replace function fleet.authenticate(p_token_hash bytea)
returns table (kind text, device_id bigint, gateway_id bigint, name text, cohort text, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'device', d.device_id, null::bigint, d.alias, d.cohort, extract(epoch from d.heartbeat_interval)::integer
  from fleet.devices d
  where d.token_hash = p_token_hash and d.revoked_at is null
  union all
  select 'gateway', null, g.gateway_id, g.gateway_name, null, null
  from fleet.gateways g
  where g.token_hash = p_token_hash and g.revoked_at is null;
$$;

comment on function fleet.authenticate(bytea) is
  'Whose token has this SHA-256: a device, a gateway, or (no row) nobody''s or a revoked one.';
--! EndIncluded functions/authenticate.sql
--! Included functions/known_devices.sql
create or replace function fleet.known_devices(p_device_ids bigint[])
returns table (device_id bigint, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.device_id, extract(epoch from d.heartbeat_interval)::integer
  from fleet.devices d
  where d.device_id = any (p_device_ids) and d.revoked_at is null;
$$;

comment on function fleet.known_devices(bigint[]) is
  'Those of the devices that are enrolled and not revoked: whom a gateway may speak for.';
--! EndIncluded functions/known_devices.sql
--! Included functions/heal_last_status.sql
-- Driven from the roster: one index probe a device and partition, where a scan of the day's heartbeats would read them all.
create or replace function fleet.heal_last_status(
  p_window interval,
  p_max_rows integer,
  out checked bigint,
  out updated bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz := now() - p_window;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('fleet.reconcile', 0)) then
    raise exception using
      errcode = 'FL003',
      message = 'last status is being reconciled by another session',
      hint = 'Wait for it, or see: select * from pg_locks where locktype = ''advisory'';';
  end if;
  with newest as materialized (
    select d.device_id, h.ts, h.received_at, h.battery_pct, h.network_type, h.unity_running, h.signal_dbm, h.agent_version,
      h.ip, ls.last_ts
    from fleet.devices d
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    left join lateral (
      select b.*
      from fleet.device_heartbeats b
      where b.device_id = d.device_id and b.ts >= v_since
      order by b.ts desc
      limit 1
    ) h on true
  ),
  healed as (
    insert into fleet.device_last_status as ls (
      device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, status
    )
    select n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version,
      n.ip, case when n.unity_running is false then 'unity_down' else 'ok' end
    from newest n
    where n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id
    limit p_max_rows
    on conflict (device_id) do update
      set last_ts = excluded.last_ts,
        last_received_at = excluded.last_received_at,
        battery_pct = excluded.battery_pct,
        network_type = excluded.network_type,
        unity_running = excluded.unity_running,
        signal_dbm = excluded.signal_dbm,
        agent_version = excluded.agent_version,
        ip = excluded.ip,
        status = excluded.status
      where ls.last_ts is null or ls.last_ts < excluded.last_ts
    returning ls.device_id
  )
  select (select count(*) from newest), (select count(*) from healed)
  into checked, updated;
end
$$;

comment on function fleet.heal_last_status(interval, integer) is
  'Moves last status forward to the newest stored heartbeat within a window, for at most so many devices. Behind fleet.reconcile() and fleet.backfill_last_status().';
--! EndIncluded functions/heal_last_status.sql
--! Included functions/reconcile.sql
create or replace function fleet.reconcile(
  p_window interval default '24 hours',
  p_max_rows integer default 5000,
  out checked bigint,
  out updated bigint,
  out elapsed_ms bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz := clock_timestamp();
begin
  if p_window is null or p_window <= interval '0' or p_max_rows is null or p_max_rows < 1 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot reconcile a window of %s and %s rows', coalesce(p_window::text, 'null'), coalesce(p_max_rows::text, 'null')),
      hint = 'Example: select * from fleet.reconcile(''24 hours'', 5000);';
  end if;
  select h.checked, h.updated into checked, updated from fleet.heal_last_status(p_window, p_max_rows) h;
  elapsed_ms := fleet.elapsed_ms(v_since);
  perform fleet.count_up('reconciliation_rows_updated_total', updated);
  perform fleet.record_event('reconciliation.completed', p_rows => updated, p_duration_ms => elapsed_ms);
end
$$;

comment on function fleet.reconcile(interval, integer) is
  'Repairs last status where it is behind the stored heartbeats of a window; newest wins. What is beyond p_max_rows is found by the next run. Run hourly. Example: select * from fleet.reconcile();';
--! EndIncluded functions/reconcile.sql
--! Included functions/backfill_last_status.sql
create or replace function fleet.backfill_last_status(p_days integer default 7, out updated bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_days is null or p_days < 1 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot backfill %s days', coalesce(p_days::text, 'null')),
      hint = 'Example: select fleet.backfill_last_status(7);';
  end if;
  select h.updated into updated from fleet.heal_last_status(make_interval(days => p_days), 2147483647) h;
  perform fleet.record_event('backfill.completed', p_rows => updated);
end
$$;

comment on function fleet.backfill_last_status(integer) is
  'Fills last status from the stored heartbeats of the last days, all devices. Example: select fleet.backfill_last_status(7);';
--! EndIncluded functions/backfill_last_status.sql
--! Included functions/refresh_sizes.sql
create or replace function fleet.refresh_sizes(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition record;
  v_rows bigint;
  v_count integer := 0;
begin
  update fleet.hb_partitions p
  set bytes_size = pg_total_relation_size(p.relid)
  where p.state in ('active', 'restored') and p.relid is not null
    and p.bytes_size is distinct from pg_total_relation_size(p.relid);

  -- Exact, once the day is over; not again once it cannot grow, and not where the count is that of an archive.
  for v_partition in
    select p.partition_name
    from fleet.hb_partitions p
    where p.state = 'active' and p.relid is not null and p.range_end <= p_now and p.archive_url is null
      and (p.row_count is null or p.range_end > p_now - (select max_late from fleet.settings))
    order by p.range_start
  loop
    execute format('select count(*) from fleet.%I', v_partition.partition_name) into v_rows;
    update fleet.hb_partitions
    set row_count = v_rows
    where partition_name = v_partition.partition_name and row_count is distinct from v_rows;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.refresh_sizes(timestamptz) is
  'Refreshes row counts of past partitions that can still change, and sizes of all; returns how many were counted. Run by fleet.nightly().';
--! EndIncluded functions/refresh_sizes.sql
--! Included functions/prune.sql
create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_quarantined bigint;
  v_events bigint;
begin
  delete from fleet.heartbeat_quarantine q
  using fleet.settings s
  where q.received_at < p_now - s.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  using fleet.settings s
  where e.at < p_now - s.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Removes quarantined heartbeats and events that are past their time; returns how many. Run by fleet.nightly().';
--! EndIncluded functions/prune.sql
--! Included functions/retry_failed_archives.sql
create or replace function fleet.retry_failed_archives() returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with due as (
    update fleet.hb_partitions
    set attempts = 0, next_attempt_at = now()
    where state = 'archive_failed' and next_attempt_at is null
    returning partition_name
  )
  select count(*) from due;
$$;

comment on function fleet.retry_failed_archives() is
  'Makes partitions whose attempts were used up due again; returns how many. Run by fleet.nightly().';
--! EndIncluded functions/retry_failed_archives.sql
--! Included functions/nightly_plan.sql
create or replace function fleet.nightly_plan(p_retention interval default null, p_now timestamptz default now())
returns table (step text, partition_name text, detail text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  (
    select 'premake', null::text, format('make the partition of %s', d.day::date)
    from fleet.settings s
    cross join generate_series(p_now::date::timestamptz, p_now::date + s.premake_days * interval '1 day', interval '1 day') as d (day)
    where not exists (
      select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day
    )
    order by d.day
  )
  union all
  select 'retire', r.partition_name, r.reason
  from fleet.retention_plan(p_retention, p_now) r
  where r.action = 'retire'
  union all
  select 'hold', r.partition_name, r.reason
  from fleet.retention_plan(p_retention, p_now) r
  where r.action = 'hold'
  union all
  (
    select 'archive', p.partition_name, format('state %s%s', p.state, ': ' || p.last_error)
    from fleet.hb_partitions p
    where p.state in ('detached', 'archiving', 'archive_failed', 'archived')
    order by p.range_start
  );
$$;

comment on function fleet.nightly_plan(interval, timestamptz) is
  'The dry run of fleet.nightly(): what it would make, retire and leave to the archiver; changes nothing. Example: select * from fleet.nightly_plan(''60 days'');';
--! EndIncluded functions/nightly_plan.sql
--! Included functions/run_steps.sql
create or replace function fleet.run_steps(p_run_id bigint)
returns table (step text, partition_name text, detail text, rows bigint, duration_ms bigint, ok boolean)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select e.event, e.partition_name, e.detail, e.rows, e.duration_ms, e.is_ok
  from fleet.events e
  where e.run_id = p_run_id
  order by e.event_id;
$$;

comment on function fleet.run_steps(bigint) is
  'What one run of fleet.nightly() or fleet.maintain() did. Example: call fleet.nightly(); then select * from fleet.run_steps(its run_id);';
--! EndIncluded functions/run_steps.sql
--! Included functions/job_definitions.sql
create or replace function fleet.job_definitions()
returns table (jobname text, schedule text, command text)
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  values
    -- Half an hour away from the night, with which it shares a lock.
    ('fleet-maintain', '35 * * * *', 'call fleet.maintain()'),
    ('fleet-nightly', '0 3 * * *', 'call fleet.nightly()'),
    ('fleet-reconcile', '5 * * * *', 'select fleet.reconcile()'),
    ('fleet-archive-wake', '*/10 * * * *', 'select fleet.wake_archiver()'),
    ('fleet-prune-cron-history', '20 4 * * *',
      $job$delete from cron.job_run_details where end_time < now() - interval '14 days'$job$);
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron has to run for the store, with their schedules in GMT.';
--! EndIncluded functions/job_definitions.sql
--! Included functions/schedule_jobs.sql
create or replace function fleet.schedule_jobs()
returns table (jobname text, schedule text, command text, is_scheduled boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_job record;
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    for v_job in select * from fleet.job_definitions() loop
      raise notice using
        message = format('not scheduled, pg_cron is not in this database: %s', v_job.jobname),
        hint = format(
          'In the database that cron.database_name names (%s): select cron.schedule_in_database(%L, %L, %L, %L, %L);',
          coalesce(current_setting('cron.database_name', true), 'pg_cron is not loaded'),
          v_job.jobname, v_job.schedule, v_job.command, current_database(), 'fleet_owner'
        );
    end loop;
    return query select d.jobname, d.schedule, d.command, false from fleet.job_definitions() d;
    return;
  end if;

  -- By name, so that a second call changes nothing; jobs of ours that are no longer defined go.
  execute $jobs$
    select cron.unschedule(j.jobid)
    from cron.job j
    where j.jobname like 'fleet-%' and j.username = current_user
      and not exists (select from fleet.job_definitions() d where d.jobname = j.jobname)
  $jobs$;
  for v_job in select * from fleet.job_definitions() loop
    execute 'select cron.schedule($1, $2, $3)' using v_job.jobname, v_job.schedule, v_job.command;
  end loop;
  return query select d.jobname, d.schedule, d.command, true from fleet.job_definitions() d;
end
$$;

comment on function fleet.schedule_jobs() is
  'Gives pg_cron the jobs of fleet.job_definitions(), as their owner; may be called again. Where pg_cron lives in another database it says what to run there. Example: select * from fleet.schedule_jobs();';
--! EndIncluded functions/schedule_jobs.sql
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
  return query execute $history$
    select d.jobname, d.schedule, j.active, r.start_time, r.status, r.return_message,
      (
        select max(o.start_time) from cron.job_run_details o where o.jobid = j.jobid and o.status = 'succeeded'
      )
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user
    left join lateral (
      select h.start_time, h.status, h.return_message
      from cron.job_run_details h
      where h.jobid = j.jobid
      order by h.runid desc
      limit 1
    ) r on true
  $history$;
end
$$;

comment on function fleet.job_history() is
  'Each expected pg_cron job with its last run and last success; nulls where it is not scheduled in this database.';
--! EndIncluded functions/job_history.sql
--! Included functions/metric_values.sql
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
--! EndIncluded functions/metric_values.sql
--! Included functions/begin_run.sql
create or replace function fleet.begin_run(p_kind text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint := hashtextextended('fleet.maintenance', 0);
  v_run_id bigint;
  v_holder integer;
begin
  -- A lock of the session: it has to outlive the transactions of the run.
  if not pg_try_advisory_lock(v_key) then
    select l.pid into v_holder
    from pg_locks l
    where l.locktype = 'advisory' and l.granted
      and l.database = (select oid from pg_database where datname = current_database())
      and (l.classid::bigint << 32 | l.objid::bigint) = v_key;
    raise exception using
      errcode = 'FL003',
      message = format('maintenance is running already, in backend %s', v_holder),
      hint = 'Wait for it. If it is stuck: select pg_terminate_backend(pid); the next run goes on where it ended.';
  end if;
  v_run_id := nextval('fleet.run_id_seq');
  perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => session_user::text);
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text) is
  'Begins a run of maintenance: takes its lock, or says who has it, and numbers the run.';
--! EndIncluded functions/begin_run.sql
--! Included functions/end_run.sql
create or replace function fleet.end_run(p_run_id bigint, p_kind text, p_failed integer) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.record_event(
    p_kind || '.end', p_run_id => p_run_id, p_is_ok => p_failed = 0,
    p_detail => case when p_failed > 0 then format('%s steps failed', p_failed) end,
    p_duration_ms => fleet.elapsed_ms(
      (select e.at from fleet.events e where e.run_id = p_run_id and e.event = p_kind || '.start')
    )
  );
  perform pg_advisory_unlock(hashtextextended('fleet.maintenance', 0));
  if p_failed > 0 then
    raise warning using
      message = format('%s steps of run %s failed', p_failed, p_run_id),
      hint = format('See select * from fleet.run_steps(%s) where not ok;', p_run_id);
  end if;
end
$$;

comment on function fleet.end_run(bigint, text, integer) is 'Ends a run of maintenance and frees its lock.';
--! EndIncluded functions/end_run.sql
--! Included functions/do_step.sql
create or replace function fleet.do_step(p_step text, p_partition text, p_now timestamptz) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  case p_step
    when 'premake' then
      return (select count(*) from fleet.premake(p_now));
    when 'refresh_sizes' then
      return fleet.refresh_sizes(p_now);
    when 'retire' then
      return fleet.retire_partition(p_partition, p_now);
    when 'prune' then
      return fleet.prune(p_now);
    when 'retry_failed_archives' then
      return fleet.retry_failed_archives();
    when 'wake_archiver' then
      return fleet.wake_archiver('nightly')::integer;
  end case;
end
$$;

comment on function fleet.do_step(text, text, timestamptz) is
  'One step of maintenance by name; returns how many partitions or rows it concerned.';
--! EndIncluded functions/do_step.sql
--! Included procedures/run_step.sql
-- A procedure that commits can have neither SET nor SECURITY DEFINER: what needs them is in the functions it calls.
create or replace procedure fleet.run_step(
  p_run_id bigint,
  p_step text,
  p_partition text,
  p_now timestamptz,
  inout p_failed integer
)
language plpgsql
as $$
declare
  v_since timestamptz := pg_catalog.clock_timestamp();
  v_count bigint;
  v_error text;
begin
  for v_attempt in 1..5 loop
    v_error := null;
    begin
      perform pg_catalog.set_config('fleet.run_id', p_run_id::text, true);
      v_count := fleet.do_step(p_step, p_partition, p_now);
    exception when others then
      v_error := sqlerrm;
    end;
    commit;
    -- pg_partman reports a lock timeout under another error code, so its words decide. A long query over the whole parent
    -- is the usual cause: wait a moment, in no transaction, and try again.
    exit when v_error is null or v_error not like '%lock timeout%';
    perform pg_catalog.pg_sleep(0.2 * v_attempt);
    commit;
  end loop;

  if v_error is not null then
    p_failed := p_failed + 1;
    if p_step = 'premake' then
      perform fleet.count_up('partition_create_failures_total');
    end if;
  end if;
  perform fleet.record_event(
    'maintenance.' || p_step, p_partition, v_count, fleet.elapsed_ms(v_since), v_error, v_error is null, p_run_id
  );
  commit;
end
$$;

comment on procedure fleet.run_step(bigint, text, text, timestamptz, integer) is
  'One step of maintenance in transactions of its own: retried while locks are busy, recorded in fleet.events, and never the end of the others.';
--! EndIncluded procedures/run_step.sql
--! Included procedures/maintain.sql
create or replace procedure fleet.maintain(inout p_run_id bigint default null, p_now timestamptz default now())
language plpgsql
as $$
declare
  v_failed integer := 0;
begin
  p_run_id := fleet.begin_run('maintain');
  commit;
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  perform fleet.end_run(p_run_id, 'maintain', v_failed);
end
$$;

comment on procedure fleet.maintain(bigint, timestamptz) is
  'Makes the partitions ahead. Run hourly by pg_cron; safe at any time. Example: call fleet.maintain();';
--! EndIncluded procedures/maintain.sql
--! Included procedures/nightly.sql
create or replace procedure fleet.nightly(
  inout p_run_id bigint default null,
  p_retention interval default null,
  p_now timestamptz default now()
)
language plpgsql
as $$
declare
  v_failed integer := 0;
  v_partition text;
begin
  p_run_id := fleet.begin_run('nightly');
  commit;
  -- Premake comes first and alone: ingest depends on it, on nothing below.
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'refresh_sizes', null, p_now, v_failed);
  foreach v_partition in array array(
    select r.partition_name
    from fleet.retention_plan(p_retention, p_now) r
    where r.action = 'retire'
    order by r.range_start
  ) loop
    call fleet.run_step(p_run_id, 'retire', v_partition, p_now, v_failed);
  end loop;
  call fleet.run_step(p_run_id, 'prune', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'retry_failed_archives', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'wake_archiver', null, p_now, v_failed);
  perform fleet.end_run(p_run_id, 'nightly', v_failed);
end
$$;

comment on procedure fleet.nightly(bigint, interval, timestamptz) is
  'The night''s work, each step in its own transaction: premake, count, retire what is past the retention, prune, wake the archiver. Answers its run_id for fleet.run_steps(). See first: select * from fleet.nightly_plan(). Example: call fleet.nightly();';
--! EndIncluded procedures/nightly.sql
--! Included triggers/device_heartbeats.sql
create or replace trigger device_heartbeats_record_last_status
  after insert on fleet.device_heartbeats
  referencing new table as new_rows
  for each statement execute function fleet.record_last_status();

comment on trigger device_heartbeats_record_last_status on fleet.device_heartbeats is
  'Keeps fleet.device_last_status; sees only the rows really stored.';
--! EndIncluded triggers/device_heartbeats.sql
--! Included triggers/hb_partitions.sql
create or replace trigger hb_partitions_protect
  after insert or update on fleet.hb_partitions
  for each row execute function fleet.protect_partition();

comment on trigger hb_partitions_protect on fleet.hb_partitions is
  'Tells the guard against drops which partitions are proven.';
--! EndIncluded triggers/hb_partitions.sql
--! Included triggers/settings.sql
create or replace trigger settings_audit
  after update on fleet.settings
  for each row execute function fleet.audit_settings();

comment on trigger settings_audit on fleet.settings is 'Keeps every change in fleet.settings_audit.';
--! EndIncluded triggers/settings.sql
--! Included views/device_status.sql
create or replace view fleet.device_status as
select d.device_id, d.alias, d.cohort,
  case
    when ls.status = 'clock_skewed' then 'clock_skewed'
    when ls.last_ts is null then 'new'
    -- A little more than one interval of silence is jitter; offline is never less than two intervals.
    when now() - ls.last_ts > greatest(s.offline_after, 2 * d.heartbeat_interval) then 'offline'
    when now() - ls.last_ts > 1.5 * d.heartbeat_interval + interval '15 seconds' then 'late'
    else 'online'
  end as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_ts)::bigint as seconds_since,
  ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.last_received_at,
  d.heartbeat_interval, d.enrolled_at
from fleet.devices d
cross join fleet.settings s
left join fleet.device_last_status ls using (device_id)
where d.revoked_at is null;

comment on view fleet.device_status is
  'Each enrolled device: new, online, late, offline or clock_skewed, and what it last said. Example: select status, count(*) from fleet.device_status group by status;';
--! EndIncluded views/device_status.sql
--! Included views/devices_offline.sql
create or replace view fleet.devices_offline as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_status d
where d.status = 'offline'
order by d.last_ts;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first. Example: select * from fleet.devices_offline where seconds_since > 720;';
--! EndIncluded views/devices_offline.sql
--! Included views/unity_down.sql
create or replace view fleet.unity_down as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.agent_version
from fleet.device_status d
where d.unity_running is false and d.status in ('online', 'late')
order by d.last_ts desc;

comment on view fleet.unity_down is
  'Devices that are heard from and say that their Unity app does not run. Example: select alias from fleet.unity_down;';
--! EndIncluded views/unity_down.sql
--! Included views/fleet_summary.sql
create or replace view fleet.fleet_summary as
select coalesce(d.cohort, '(all)') as cohort,
  count(*) as devices,
  count(*) filter (where d.status = 'online') as online,
  count(*) filter (where d.status = 'late') as late,
  count(*) filter (where d.status = 'offline') as offline,
  count(*) filter (where d.status = 'new') as new,
  count(*) filter (where d.status = 'clock_skewed') as clock_skewed,
  count(*) filter (where d.unity_running is false and d.status in ('online', 'late')) as unity_down
from fleet.device_status d
group by grouping sets ((d.cohort), ())
order by grouping(d.cohort) desc, d.cohort;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. Example: select * from fleet.fleet_summary;';
--! EndIncluded views/fleet_summary.sql
--! Included views/partition_health.sql
create or replace view fleet.partition_health as
select p.partition_name, p.range_start, p.range_end, p.state, p.step, p.row_count,
  coalesce(pg_total_relation_size(p.relid), 0) as bytes_size,
  p.attempts, p.next_attempt_at, p.last_error, p.held_reason, p.lease_owner, p.lease_until, p.detached_at, p.proven_at,
  p.dropped_at, p.restored_at, p.archive_url
from fleet.hb_partitions p
order by p.range_start desc;

comment on view fleet.partition_health is
  'Each partition that ever was, newest first: where it is in its life, and what is wrong with it. Example: select * from fleet.partition_health where state = ''archive_failed'';';
--! EndIncluded views/partition_health.sql
--! Included views/archives.sql
create or replace view fleet.archives as
select p.partition_name, p.range_start, p.range_end, p.state, p.row_count, p.min_ts, p.max_ts, p.archive_bytes,
  p.checksum_sha256, p.content_checksum, p.archive_url, p.proven_at
from fleet.hb_partitions p
where p.proven_at is not null and p.archive_url is not null
order by p.range_start;

comment on view fleet.archives is
  'Every proven archive: date range, rows, checksums, where it is, and when it was proven. Example: select * from fleet.archives where range_start >= ''2026-08-01'';';
--! EndIncluded views/archives.sql
--! Included views/data_coverage.sql
create or replace view fleet.data_coverage as
select d.day::date as day,
  case
    when p.in_database and p.in_archive then 'both'
    when p.in_database then 'online'
    when p.in_archive then 'archived'
    else 'missing'
  end as "where",
  p.row_count
from (
  select generate_series(
    (select min(range_start) from fleet.hb_partitions), date_trunc('day', now(), 'UTC'), interval '1 day'
  ) as day
) d
left join lateral (
  select bool_or(h.relid is not null) as in_database,
    bool_or(h.proven_at is not null and h.archive_url is not null) as in_archive,
    sum(h.row_count) as row_count
  from fleet.hb_partitions h
  where h.range_start <= d.day and h.range_end > d.day
) p on true
order by d.day desc;

comment on view fleet.data_coverage is
  'Where the heartbeats of each day are: online (in the database), archived, both or missing. row_count is that of the day''s partition. Example: select * from fleet.data_coverage where "where" = ''missing'';';
--! EndIncluded views/data_coverage.sql
--! Included views/storage_growth.sql
create or replace view fleet.storage_growth as
select p.range_start::date as day, p.partition_name, p.state, p.row_count,
  coalesce(pg_total_relation_size(p.relid), 0) as bytes_online,
  coalesce(p.archive_bytes, 0) as bytes_archived
from fleet.hb_partitions p
where p.range_start <= now()
order by p.range_start desc;

comment on view fleet.storage_growth is
  'Rows and bytes of each partition, online and in the archive, newest first. Example: select sum(bytes_online) from fleet.storage_growth;';
--! EndIncluded views/storage_growth.sql
--! Included views/job_health.sql
create or replace view fleet.job_health as
select h.jobname, h.schedule,
  case
    when h.is_active is null then 'missing'
    when not h.is_active then 'disabled'
    when h.last_start is null then 'waiting'
    when h.last_status = 'failed' then 'failed'
    when h.last_success is null or now() - h.last_success > case h.schedule
      when '*/10 * * * *' then interval '25 minutes'
      when '0 3 * * *' then interval '25 hours'
      when '20 4 * * *' then interval '25 hours'
      else interval '125 minutes'
    end then 'late'
    else 'ok'
  end as status,
  h.last_start, h.last_status, h.last_message, h.last_success
from fleet.job_history() h
order by h.jobname;

comment on view fleet.job_health is
  'The pg_cron jobs of the store: ok, waiting (never run yet), late, failed, disabled or missing. Example: select * from fleet.job_health where status <> ''ok'';';
--! EndIncluded views/job_health.sql
--! Included functions/check.sql
create or replace function fleet.check()
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_today timestamptz := date_trunc('day', now());
  v_ahead integer;
  v_names text;
  v_count bigint;
  v_age interval;
begin
  select * into strict v_settings from fleet.settings;

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= now() and a.range_end > now()) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('no partition for %s: heartbeats are quarantined', v_today::date);
    remedy := 'call fleet.maintain();';
  end if;
  return next;

  check_name := 'partitions_ahead';
  select count(*) into v_ahead
  from generate_series(v_today + interval '1 day', v_today + interval '90 days', interval '1 day') as d (day)
  where d.day < coalesce(
    (
      select min(g.day)
      from generate_series(v_today + interval '1 day', v_today + interval '91 days', interval '1 day') as g (day)
      where not exists (select from fleet.attached_partitions() a where a.range_start <= g.day and a.range_end > g.day)
    ),
    'infinity'
  );
  detail := format('%s days ahead, %s wanted', v_ahead, v_settings.premake_days);
  status := case when v_ahead >= v_settings.premake_days then 'ok' when v_ahead >= 3 then 'warn' else 'fail' end;
  remedy := case when status <> 'ok' then 'call fleet.maintain();' end;
  return next;

  check_name := 'partition_gaps';
  select string_agg(g.gap, ', ') into v_names
  from (
    select format('%s to %s', a.range_end, lead(a.range_start) over (order by a.range_start)) as gap,
      a.range_end as gap_start,
      lead(a.range_start) over (order by a.range_start) as gap_end
    from fleet.attached_partitions() a
  ) g
  where g.gap_end > g.gap_start
    -- Between a held or restored day and the rest, the days are in the archive.
    and g.gap_end > now() - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'no gap between partitions');
  remedy := case when v_names is not null then 'select fleet.create_partitions(from, to);' end;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  left join pg_class c on c.oid = p.relid
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone, undropped: ' || v_names, 'every partition that is not dropped has its table');
  remedy := case when v_names is not null then 'Restore from a backup; see RUNBOOK.md, "A table is gone".' end;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has the name it was made with');
  remedy := case when v_names is not null then 'alter table … rename to its former name;' end;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it holds a row', 'there is none');
  remedy := case when v_names is not null then format('alter table fleet.device_heartbeats detach partition %s;', v_names) end;
  return next;

  check_name := 'partition_indexes';
  select string_agg(a.partition_name, ', ') into v_names
  from fleet.attached_partitions() a
  where (
    select count(*) from pg_index i where i.indrelid = a.relid and i.indisvalid and (i.indisunique or i.indnatts = 2)
  ) < 2 or not exists (
    select from pg_index i where i.indrelid = a.relid and i.indisvalid and i.indisunique
  );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('an index is missing on ' || v_names, 'every partition has both indexes');
  remedy := case
    when v_names is not null then
      'select partman.inherit_template_properties(''fleet.device_heartbeats'', ''fleet'', name); for each of them'
  end;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan() r
  where r.action = 'retire' and r.range_end < now() - v_settings.retention - interval '2 days';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'nothing overdue');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'archive_failed';
  select string_agg(format('%s: %s', p.partition_name, p.last_error), '; ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  where p.state = 'archive_failed';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'none');
  remedy := case when v_names is not null then 'Mend the cause, then select fleet.retry_archive(name);' end;
  return next;

  check_name := 'archive_backlog';
  select count(*), now() - min(p.detached_at) into v_count, v_age
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving');
  status := case when v_count = 0 or v_age < interval '6 hours' then 'ok' when v_age < interval '2 days' then 'warn' else 'fail' end;
  detail := format('%s partitions wait%s', v_count, ', the oldest for ' || date_trunc('second', v_age));
  remedy := case when status <> 'ok' then 'Is the archiver running? Then: select fleet.wake_archiver();' end;
  return next;

  check_name := 'archiver';
  select now() - max(a.last_seen_at) into v_age from fleet.archivers a;
  status := case when v_age < interval '5 minutes' then 'ok' when v_age is null then 'warn' else 'fail' end;
  detail := coalesce('last heard of ' || date_trunc('second', v_age) || ' ago', 'never heard of');
  remedy := case when status <> 'ok' then 'Start it: npm run archiver' end;
  return next;

  check_name := 'restores';
  select string_agg(format('%s: %s', i.partition_name, i.last_error), '; ') into v_names
  from fleet.restore_items i
  where i.state = 'failed' and i.finished_at > now() - interval '1 day';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('failed: ' || v_names, 'none failed in the last day');
  remedy := case when v_names is not null then 'npm run archive -- verify, then select fleet.request_restore(from, to);' end;
  return next;

  check_name := 'maintenance';
  select string_agg(format('%s %s: %s', e.event, e.partition_name, e.detail), '; ') into v_names
  from fleet.events e
  where e.event like 'maintenance.%' and not e.is_ok and e.at > now() - interval '25 hours'
    and not exists (
      select from fleet.events l
      where l.event = e.event and l.partition_name is not distinct from e.partition_name and l.is_ok and l.at > e.at
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'no step failed without a later success');
  remedy := case when v_names is not null then 'Mend the cause, then call fleet.nightly();' end;
  return next;

  check_name := 'scheduler';
  if not exists (select from pg_extension where extname = 'pg_cron') then
    status := 'warn'; detail := 'pg_cron is not in this database; what it runs elsewhere is not seen from here';
    remedy := 'select * from fleet.schedule_jobs(); tells what to run in its database';
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs'; remedy := 'Restart Postgres.';
  else
    select string_agg(format('%s is %s', j.jobname, j.status), ', ') into v_names
    from fleet.job_health j
    where j.status not in ('ok', 'waiting');
    status := case when v_names is null then 'ok' else 'fail' end;
    detail := coalesce(v_names, 'all jobs run');
    remedy := case when v_names is not null then 'select * from fleet.job_health; missing ones: select * from fleet.schedule_jobs();' end;
  end if;
  return next;

  check_name := 'quarantine';
  select count(*), count(distinct q.device_id)::text into v_count, v_names
  from fleet.heartbeat_quarantine q
  where q.received_at > now() - interval '1 hour';
  status := case when v_count < 100 then 'ok' else 'warn' end;
  detail := format('%s heartbeats of %s devices in the last hour', v_count, v_names);
  remedy := case
    when status <> 'ok' then
      'select reason, count(*), min(ts), max(ts) from fleet.heartbeat_quarantine where received_at > now() - interval ''1 hour'' group by reason;'
  end;
  return next;

  check_name := 'guard';
  if exists (select from pg_event_trigger where evtname = 'fleet_guard_drop' and evtenabled = 'A') then
    status := 'ok'; detail := 'DROP of an unproven partition is refused'; remedy := null;
  else
    status := 'warn'; detail := 'the event trigger fleet_guard_drop is missing or not ENABLE ALWAYS';
    remedy := 'As superuser: run sql/guard.sql, or alter event trigger fleet_guard_drop enable always;';
  end if;
  return next;
end
$$;

comment on function fleet.check() is
  'One row per thing that can go wrong: ok, warn or fail, with the remedy as a command. Example: select * from fleet.check() where status <> ''ok'';';
--! EndIncluded functions/check.sql

-- From the retention back to premake_days ahead.
select fleet.set_up_partitions();

--! Included grants.sql
-- Who may do what. Everything is revoked first, so that this file is the whole truth.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba;
grant usage on schema fleet_detached to fleet_reader, fleet_dba;
-- CREATE is what owning a table there takes.
grant usage, create on schema fleet_detached to fleet_archiver;

-- Heartbeats are never changed, not even by the owner: rows leave with their partition, once it is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.metric_values()
to fleet_server;

grant execute on function
  fleet.create_device(text, text),
  fleet.enroll_device(text, text),
  fleet.revoke_device(bigint),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(),
  -- What the procedures call with the rights of who calls them.
  fleet.begin_run(text),
  fleet.end_run(bigint, text, integer),
  fleet.do_step(text, text, timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.record_event(text, text, bigint, bigint, text, boolean, bigint),
  fleet.count_up(text, numeric),
  fleet.elapsed_ms(timestamptz)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.maintain(bigint, timestamptz),
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_step(bigint, text, text, timestamptz, integer)
to fleet_server, fleet_dba;

grant execute on function
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.schedule_jobs(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values()
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.wake_archiver(text),
  fleet.content_checksum(regclass),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz),
  fleet.record_upload(text, text, text, text, bigint),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.release_restore(text, text),
  fleet.fail_restore(text, text, text)
to fleet_archiver;

grant select on
  fleet.device_status, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.job_health
to fleet_reader, fleet_dba;
-- What the view job_health calls.
grant execute on function fleet.job_history() to fleet_reader, fleet_dba;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_requests, fleet.restore_items to fleet_archiver, fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql
-- The partitions that were made before the grants.
select partman.reapply_privileges('fleet.device_heartbeats');
