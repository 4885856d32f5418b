--! Previous: -
--! Hash: sha1:043345923fafe2a9d21343a568f6fc93b08b17ac
--! Message: initial

-- The whole store: schemas and tables, then everything that can be replaced in place, which is included from sql/. Each statement
-- may run again, because a store of 0.1.0 runs this file after upgrade-from-0.1.0.sql.

do $$
begin
  -- Even "if not exists" needs the right to create schemas, which the owner has only in a new database.
  if to_regnamespace('fleet') is null then
    create schema fleet;
  end if;
  if to_regnamespace('fleet_detached') is null then
    create schema fleet_detached;
  end if;
end
$$;
comment on schema fleet is
  'NexMDM fleet heartbeats: devices, their heartbeats by day, their last status, and the life of each partition.';
comment on schema fleet_detached is
  'Retired partitions: detached and read-only, until their archive is proven and they are dropped.';

-- Nothing is granted to public: grants.sql says who may do what.
alter default privileges revoke execute on functions from public;

-- Settings

create table if not exists fleet.settings (
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
  command_expires_after interval not null default '7 days',
  commands_keep interval not null default '30 days',
  silence_window interval not null default '30 minutes',
  silence_share double precision not null default 0.1,
  silence_ratio double precision not null default 2,
  silence_min_devices integer not null default 3,
  ingest_gap interval not null default '3 minutes',
  rollups_keep interval not null default '3 years',
  proofs_needed smallint not null default 1,
  archive_stores text[] not null default '{}',
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
  constraint settings_events_keep_range check (events_keep >= '30 days'),
  constraint settings_command_expires_after_range check (command_expires_after > '0'),
  constraint settings_commands_keep_range check (commands_keep >= command_expires_after),
  constraint settings_silence_window_range check (silence_window >= '10 minutes' and silence_window <= '1 day'),
  constraint settings_silence_share_range check (silence_share > 0 and silence_share <= 1),
  constraint settings_silence_ratio_range check (silence_ratio >= 1 and silence_ratio <= 100),
  constraint settings_silence_min_devices_range check (silence_min_devices between 1 and 1000000),
  constraint settings_ingest_gap_range check (ingest_gap >= '2 minutes' and ingest_gap <= '1 day'),
  constraint settings_rollups_keep_range check (rollups_keep >= '30 days'),
  constraint settings_proofs_needed_range check (proofs_needed in (1, 2))
);
comment on table fleet.settings is
  'The settings, in one row. Change them with the set_ functions or with UPDATE; fleet.settings_audit keeps each change.';
comment on column fleet.settings.is_only_row is 'Always true: there is one row.';
comment on column fleet.settings.retention is 'How long heartbeats stay online. Change it with fleet.set_retention(interval).';
comment on column fleet.settings.premake_days is
  'How many days ahead partitions are made. Change it with fleet.set_premake(integer).';
comment on column fleet.settings.cadence is 'daily or monthly partitions. Change it with fleet.set_cadence(text).';
comment on column fleet.settings.max_late is
  'A heartbeat that is older than this when it arrives is quarantined as too_late. Never longer than the retention in effect.';
comment on column fleet.settings.max_future is
  'A heartbeat whose ts is further ahead than this when it arrives is quarantined as in_future.';
comment on column fleet.settings.offline_after is 'A device that was silent for longer than this is offline.';
comment on column fleet.settings.archive_grace is 'How long a retired table is kept after its archive was proven.';
comment on column fleet.settings.archive_max_attempts is
  'After this many failures in a row, the archiver waits for the next night or for fleet.retry_archive(name).';
comment on column fleet.settings.store_ip is
  'What is stored of a device''s address. full: all of it; prefix: its /24 (IPv4) or /48 (IPv6); none: nothing.';
comment on column fleet.settings.quarantine_keep is 'How long quarantined heartbeats are kept.';
comment on column fleet.settings.quarantine_per_device is
  'How many quarantined heartbeats are kept per device; further ones are rejected.';
comment on column fleet.settings.events_keep is 'How long fleet.events are kept.';
comment on column fleet.settings.command_expires_after is 'A command that is older than this is no longer handed to its device.';
comment on column fleet.settings.commands_keep is 'How long commands and their dispatch log are kept.';
comment on column fleet.settings.silence_window is
  'A device has gone quiet if it fell silent within this time before now; see fleet.fleet_silence. After a gap in ingest, no '
  'cohort is judged for this long.';
comment on column fleet.settings.silence_share is
  'A cohort is silent only if at least this share of its active devices has gone quiet.';
comment on column fleet.settings.silence_ratio is
  'A cohort is silent only if its share of quiet devices is at least this many times the usual share at this time of day.';
comment on column fleet.settings.silence_min_devices is
  'A cohort is silent only if at least this many of its devices have gone quiet; smaller cohorts are not judged.';
comment on column fleet.settings.ingest_gap is
  'If no heartbeat was received from any device for longer than this, and 20 were due, ingest is down and no cohort is called '
  'silent.';
comment on column fleet.settings.rollups_keep is
  'How long availability by day and the history of storage are kept. Availability is kept at least as long as the retention.';
comment on column fleet.settings.proofs_needed is
  '1: a partition is dropped once the archiver has proven its archive. 2: it is dropped once a login of fleet_verifier has '
  'confirmed the archive, too.';
comment on column fleet.settings.archive_stores is
  'Additional stores whose archives may be registered, written like ARCHIVE_URL. Stores in which this database already has '
  'archives need no entry.';
insert into fleet.settings default values on conflict do nothing;

create table if not exists fleet.settings_audit (
  audit_id bigint generated always as identity,
  changed_at timestamptz not null default now(),
  changed_by text not null default session_user,
  setting text not null,
  old_value text,
  new_value text,
  constraint settings_audit_pkey primary key (audit_id)
);
comment on table fleet.settings_audit is 'Every change of fleet.settings: when, by which login, from what, to what.';
comment on column fleet.settings_audit.audit_id is 'Order of the changes.';
comment on column fleet.settings_audit.changed_at is 'When the setting was changed.';
comment on column fleet.settings_audit.changed_by is 'The login that changed it.';
comment on column fleet.settings_audit.setting is 'Column of fleet.settings, or cohort_interval:<cohort>.';
comment on column fleet.settings_audit.old_value is 'The value before the change, as text.';
comment on column fleet.settings_audit.new_value is 'The value after the change, as text.';

-- Devices and gateways

create table if not exists fleet.devices (
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
comment on column fleet.devices.device_id is
  'The key of the device everywhere in the store, and the distribution column for Citus.';
comment on column fleet.devices.alias is 'The fleet''s own name for the device.';
comment on column fleet.devices.cohort is 'The group of devices that it is watched and paced with.';
comment on column fleet.devices.token_hash is 'SHA-256 of its token. The token itself is not stored.';
comment on column fleet.devices.heartbeat_interval is 'How often the device is asked to send a heartbeat.';
comment on column fleet.devices.enrolled_at is 'When the device was enrolled.';
comment on column fleet.devices.revoked_at is 'When its token was revoked; null while it is valid.';
create index if not exists devices_heartbeat_interval_idx on fleet.devices (heartbeat_interval);
comment on index fleet.devices_heartbeat_interval_idx is 'Finds the devices with long intervals.';
create index if not exists devices_cohort_idx on fleet.devices (cohort, device_id);
comment on index fleet.devices_cohort_idx is 'Pages of fleet.list_devices(p_cohort => …).';

create table if not exists fleet.cohorts (
  cohort text not null,
  min_interval interval,
  last_interval interval,
  changed_at timestamptz not null default now(),
  constraint cohorts_pkey primary key (cohort),
  constraint cohorts_min_interval_range check (min_interval >= '1 second' and min_interval <= '1 day')
);
comment on table fleet.cohorts is
  'Cohorts that are slowed down, or were until recently. Change it with fleet.set_cohort_interval(cohort, interval).';
comment on column fleet.cohorts.cohort is 'fleet.devices.cohort.';
comment on column fleet.cohorts.min_interval is
  'No device of the cohort is asked to send more often than this, whatever its own interval is; null: no longer slowed down.';
comment on column fleet.cohorts.last_interval is
  'The interval before the last change. A device may follow it until it gets its first answer after changed_at, and is not late '
  'because of that.';
comment on column fleet.cohorts.changed_at is 'When the interval was last changed.';

create table if not exists fleet.gateways (
  gateway_id bigint generated always as identity,
  gateway_name text not null,
  token_hash bytea not null,
  created_at timestamptz not null default now(),
  revoked_at timestamptz,
  constraint gateways_pkey primary key (gateway_id),
  constraint gateways_gateway_name_key unique (gateway_name),
  constraint gateways_token_hash_key unique (token_hash)
);
comment on table fleet.gateways is 'Gateways: senders that may post heartbeats for any enrolled device.';
comment on column fleet.gateways.gateway_id is 'The key of the gateway.';
comment on column fleet.gateways.gateway_name is 'Name of the gateway.';
comment on column fleet.gateways.token_hash is 'SHA-256 of its token. The token itself is not stored.';
comment on column fleet.gateways.created_at is 'When the gateway was created.';
comment on column fleet.gateways.revoked_at is 'When its token was revoked; null while it is valid.';

create table if not exists fleet.token_change_log (
  change_id bigint generated always as identity,
  changed_at timestamptz not null default now(),
  changed_xid xid8 not null default pg_current_xact_id(),
  subject text not null,
  constraint token_change_log_pkey primary key (change_id)
);
comment on table fleet.token_change_log is
  'Tokens that servers must remove from their caches because they were revoked or because their device was paced differently. '
  'Read it with fleet.token_changes().';
comment on column fleet.token_change_log.change_id is 'The key of the change.';
comment on column fleet.token_change_log.changed_at is 'When the change was made; used for pruning.';
comment on column fleet.token_change_log.changed_xid is
  'The transaction that made the change. Because readers follow it, and not the time or change_id, they also find a change that '
  'was committed late.';
comment on column fleet.token_change_log.subject is 'device:<id> or gateway:<id>.';
create index if not exists token_change_log_changed_xid_idx on fleet.token_change_log (changed_xid);
comment on index fleet.token_change_log_changed_xid_idx is 'Finds the changes since a transaction.';

create table if not exists fleet.device_commands (
  device_id bigint not null,
  command_id bigint generated always as identity,
  command text not null,
  payload jsonb,
  created_at timestamptz not null default now(),
  created_by text not null default session_user,
  acknowledged_at timestamptz,
  constraint device_commands_pkey primary key (device_id, command_id)
);
comment on table fleet.device_commands is
  'Commands for devices. A command is handed over at every poll until the device acknowledges it or until '
  'settings.command_expires_after has passed.';
comment on column fleet.device_commands.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_commands.command_id is
  'The order of the commands, and the number with which a device acknowledges one.';
comment on column fleet.device_commands.command is 'What to do, in the agent''s words.';
comment on column fleet.device_commands.payload is 'Arguments of the command, any JSON; null if there are none.';
comment on column fleet.device_commands.created_at is 'When the command was sent.';
comment on column fleet.device_commands.created_by is 'The login that sent the command.';
comment on column fleet.device_commands.acknowledged_at is 'When the device first acknowledged the command; null until then.';
create index if not exists device_commands_waiting_idx on fleet.device_commands (device_id, command_id)
  where acknowledged_at is null;
comment on index fleet.device_commands_waiting_idx is 'Finds the commands that a device has not acknowledged.';
create index if not exists device_commands_created_at_idx on fleet.device_commands (created_at);
comment on index fleet.device_commands_created_at_idx is 'For pruning by age.';

create table if not exists fleet.command_dispatch_log (
  device_id bigint not null,
  command_id bigint not null,
  dispatch_id bigint generated always as identity,
  event text not null,
  at timestamptz not null default now(),
  constraint command_dispatch_log_pkey primary key (device_id, command_id, dispatch_id),
  constraint command_dispatch_log_event_known check (event in ('sent', 'handed_over', 'acknowledged'))
);
comment on table fleet.command_dispatch_log is
  'What happened to each command, append-only: sent, each time it was handed_over, acknowledged. Each entry is written by the '
  'statement that does it.';
comment on column fleet.command_dispatch_log.device_id is 'fleet.devices.device_id.';
comment on column fleet.command_dispatch_log.command_id is 'fleet.device_commands.command_id.';
comment on column fleet.command_dispatch_log.dispatch_id is 'The order of the entries.';
comment on column fleet.command_dispatch_log.event is 'sent, handed_over or acknowledged.';
comment on column fleet.command_dispatch_log.at is 'When it happened.';
create index if not exists command_dispatch_log_at_idx on fleet.command_dispatch_log (at);
comment on index fleet.command_dispatch_log_at_idx is 'For pruning by age.';

-- Heartbeats

create table if not exists fleet.device_heartbeats (
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
  'Every heartbeat, partitioned by ts at UTC midnights. Write with fleet.ingest(), and always read with a range of ts.';
comment on column fleet.device_heartbeats.ts is 'When the device sent the heartbeat, by the device''s clock.';
comment on column fleet.device_heartbeats.received_at is 'When the heartbeat arrived, by the server''s clock.';
comment on column fleet.device_heartbeats.device_id is
  'fleet.devices.device_id. There is no foreign key, so that ingest takes no lock there.';
comment on column fleet.device_heartbeats.signal_dbm is 'Signal strength in dBm.';
comment on column fleet.device_heartbeats.battery_pct is 'Battery charge in percent, 0 to 100.';
comment on column fleet.device_heartbeats.unity_running is 'Whether the Unity app is running; null if the device did not say.';
comment on column fleet.device_heartbeats.network_type is 'The network in the agent''s words (wifi, lte, ...).';
comment on column fleet.device_heartbeats.agent_version is 'The version of the agent.';
comment on column fleet.device_heartbeats.ip is
  'The address that the heartbeat came from, as far as fleet.settings.store_ip allows.';
create index if not exists device_heartbeats_device_id_ts_idx on fleet.device_heartbeats (device_id, ts desc);
comment on index fleet.device_heartbeats_device_id_ts_idx is 'A device''s heartbeats, newest first.';

-- The partitioned parent cannot have a unique index on an expression, because the index would have to contain ts itself. So
-- pg_partman copies it from this template to each partition.
create table if not exists fleet.device_heartbeats_template (like fleet.device_heartbeats);
comment on table fleet.device_heartbeats_template is
  'The template of pg_partman, which makes its unique index on every partition. It has no rows.';
do $$
declare
  v_column record;
begin
  -- Not "including comments", which would leave the comments of an older template as they are.
  for v_column in
    select m.attname as name, col_description(h.attrelid, h.attnum) as comment
    from pg_attribute h
    join pg_attribute m on m.attrelid = 'fleet.device_heartbeats_template'::regclass and m.attname = h.attname and m.attnum > 0
    where h.attrelid = 'fleet.device_heartbeats'::regclass
  loop
    execute format('comment on column fleet.device_heartbeats_template.%I is %L', v_column.name, v_column.comment);
  end loop;
end
$$;
create unique index if not exists device_heartbeats_template_dedupe_key on fleet.device_heartbeats_template (
  device_id, date_bin('10 seconds', ts, timestamptz '2000-01-01 00:00:00+00')
);
comment on index fleet.device_heartbeats_template_dedupe_key is
  'One heartbeat per device and 10-second bucket, so a retry is not stored twice.';

create table if not exists fleet.heartbeat_columns (
  name text not null,
  type text not null,
  attnum smallint not null,
  relid oid not null,
  system_identifier bigint not null,
  constraint heartbeat_columns_pkey primary key (name)
);
comment on table fleet.heartbeat_columns is
  'The columns that fleet.device_heartbeats had when fleet.note_columns() was last called.';
comment on column fleet.heartbeat_columns.name is 'The name of the column.';
comment on column fleet.heartbeat_columns.type is 'Its type, as format_type() names it.';
comment on column fleet.heartbeat_columns.attnum is 'Its number in the catalog, which a rename does not change.';
comment on column fleet.heartbeat_columns.relid is
  'The oid of the table. If the table has another oid, as after a dump was restored, the numbers mean nothing.';
comment on column fleet.heartbeat_columns.system_identifier is
  'The cluster that the oid belongs to; 0 if its identifier is hidden.';

create table if not exists fleet.column_changes (
  change_id bigint generated always as identity,
  changed_at timestamptz not null,
  change text not null,
  name text not null,
  new_name text,
  type text,
  new_type text,
  constraint column_changes_pkey primary key (change_id),
  constraint column_changes_change_known check (change in ('added', 'dropped', 'renamed', 'retyped'))
);
comment on table fleet.column_changes is
  'Changes of the columns of fleet.device_heartbeats. With them, older archives are read and restored under today''s names.';
comment on column fleet.column_changes.change_id is 'The order of the changes.';
comment on column fleet.column_changes.changed_at is
  'When the change was noted; changes that were noted together have the same time.';
comment on column fleet.column_changes.change is 'added, dropped, renamed or retyped.';
comment on column fleet.column_changes.name is 'The name of the column, before the change if it was renamed.';
comment on column fleet.column_changes.new_name is 'Its name after a rename.';
comment on column fleet.column_changes.type is 'Its type before the change; null when it was added.';
comment on column fleet.column_changes.new_type is 'Its type after the change; null when it was dropped.';

create table if not exists fleet.heartbeat_quarantine (
  received_at timestamptz not null,
  device_id bigint not null,
  ts timestamptz not null,
  reason text not null,
  payload jsonb not null,
  constraint heartbeat_quarantine_pkey primary key (device_id, ts, reason),
  constraint heartbeat_quarantine_reason_known check (reason in ('too_late', 'in_future', 'no_partition'))
);
comment on table fleet.heartbeat_quarantine is
  'Heartbeats that were kept aside, not stored, because of their ts. They are kept for fleet.settings.quarantine_keep, at most '
  'quarantine_per_device for each device.';
comment on column fleet.heartbeat_quarantine.received_at is 'When the heartbeat arrived.';
comment on column fleet.heartbeat_quarantine.device_id is 'fleet.devices.device_id.';
comment on column fleet.heartbeat_quarantine.ts is 'The ts that the device sent.';
comment on column fleet.heartbeat_quarantine.reason is 'too_late, in_future or no_partition.';
comment on column fleet.heartbeat_quarantine.payload is 'The heartbeat as it arrived.';
create index if not exists heartbeat_quarantine_received_at_idx on fleet.heartbeat_quarantine (received_at);
comment on index fleet.heartbeat_quarantine_received_at_idx is 'For pruning by age and for fleet.check().';

-- The status of devices

create table if not exists fleet.device_last_status (
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
  is_silent boolean not null default true,
  constraint device_last_status_pkey primary key (device_id),
  constraint device_last_status_status_known check (status in ('ok', 'unity_down', 'clock_skewed'))
) with (
  -- Every heartbeat updates its device's row in place: half-full pages and an early vacuum keep those updates HOT.
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0.05,
  autovacuum_vacuum_threshold = 1000
);
comment on table fleet.device_last_status is
  'The newest heartbeat of each device, kept by a trigger. There is no index on last_ts: with one, no update is HOT and upserts '
  'run at half the rate. Silent devices are found by is_silent.';
comment on column fleet.device_last_status.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_last_status.last_ts is 'ts of the newest heartbeat; null before the first one.';
comment on column fleet.device_last_status.last_received_at is 'When the server last received something from the device.';
comment on column fleet.device_last_status.battery_pct is 'Battery charge in percent, 0 to 100.';
comment on column fleet.device_last_status.network_type is 'The network in the agent''s words.';
comment on column fleet.device_last_status.unity_running is 'Whether the Unity app was running.';
comment on column fleet.device_last_status.signal_dbm is 'Signal strength in dBm.';
comment on column fleet.device_last_status.agent_version is 'The version of the agent.';
comment on column fleet.device_last_status.ip is 'The address that the heartbeat came from.';
comment on column fleet.device_last_status.status is
  'What the device reported: ok or unity_down; clock_skewed if its heartbeats are quarantined; null before the first one. '
  'Whether it is online is derived in fleet.device_status.';
comment on column fleet.device_last_status.is_silent is
  'True if the device may have been silent for a long time; a device without this mark is not offline. Set by '
  'fleet.mark_silent() and cleared by a fresh heartbeat. It changes rarely, so updates stay HOT.';
create index if not exists device_last_status_silent_idx on fleet.device_last_status (device_id) where is_silent;
comment on index fleet.device_last_status_silent_idx is 'Finds the devices that may be offline.';
create index if not exists device_last_status_not_ok_idx on fleet.device_last_status (device_id) where status <> 'ok';
comment on index fleet.device_last_status_not_ok_idx is 'Finds the devices whose Unity app is down or whose clock is wrong.';

create table if not exists fleet.silence_marks (
  is_only_row boolean not null default true,
  marked_at timestamptz not null default '-infinity',
  base interval not null default '10 minutes',
  changes bigint not null default 0,
  constraint silence_marks_pkey primary key (is_only_row),
  constraint silence_marks_only_row check (is_only_row)
);
comment on table fleet.silence_marks is
  'How complete the marks in device_last_status.is_silent are; one row, kept by fleet.mark_silent().';
comment on column fleet.silence_marks.is_only_row is 'Always true: there is one row.';
comment on column fleet.silence_marks.marked_at is
  'At this time every device that had been silent for long enough had the mark; -infinity if that is not known.';
comment on column fleet.silence_marks.base is
  'A device was marked after three quarters of this time, or of twice its heartbeat_interval if that is longer.';
comment on column fleet.silence_marks.changes is
  'Grows with each change of a heartbeat_interval. A run during which it grew does not count.';
insert into fleet.silence_marks default values on conflict do nothing;

create table if not exists fleet.silence_watch (
  is_only_row boolean not null default true,
  looked_at timestamptz not null default '-infinity',
  newest_received_at timestamptz,
  gap_from timestamptz,
  gap_to timestamptz,
  sampled_at timestamptz not null default '-infinity',
  constraint silence_watch_pkey primary key (is_only_row),
  constraint silence_watch_only_row check (is_only_row)
);
comment on table fleet.silence_watch is
  'Whether any heartbeats arrive, checked each minute; one row, kept by fleet.watch_silence().';
comment on column fleet.silence_watch.is_only_row is 'Always true: there is one row.';
comment on column fleet.silence_watch.looked_at is 'When this was last checked.';
comment on column fleet.silence_watch.newest_received_at is 'The newest received_at of any device at that time.';
comment on column fleet.silence_watch.gap_from is
  'The last heartbeat before the latest gap, in which none arrived or nobody checked.';
comment on column fleet.silence_watch.gap_to is 'When heartbeats were seen to arrive again; null while they do not.';
comment on column fleet.silence_watch.sampled_at is 'When fleet.silence_samples were last taken.';
insert into fleet.silence_watch default values on conflict do nothing;

create table if not exists fleet.silence_samples (
  cohort text not null,
  sampled_at timestamptz not null,
  active integer not null,
  gone_quiet integer not null,
  constraint silence_samples_pkey primary key (cohort, sampled_at),
  constraint silence_samples_active_range check (active > 0 and gone_quiet between 0 and active)
);
comment on table fleet.silence_samples is
  'Samples of fleet.fleet_silence, one each 10 minutes for the last 8 days, except while it was muted because of ingest. What is'
  ' usual is computed from them.';
comment on column fleet.silence_samples.cohort is 'fleet.devices.cohort, or (all).';
comment on column fleet.silence_samples.sampled_at is 'When the sample was taken.';
comment on column fleet.silence_samples.active is 'Devices that were heard from when the window began, or in it.';
comment on column fleet.silence_samples.gone_quiet is
  'Of those, the devices that fell silent in the window and were still silent then.';

create table if not exists fleet.silence_usual (
  cohort text not null,
  usual_share double precision,
  samples integer not null,
  days integer not null,
  computed_at timestamptz not null,
  constraint silence_usual_pkey primary key (cohort)
);
comment on table fleet.silence_usual is
  'The share of each cohort that usually goes quiet at this time of day, computed from fleet.silence_samples each 10 minutes.';
comment on column fleet.silence_usual.cohort is 'fleet.devices.cohort, or (all).';
comment on column fleet.silence_usual.usual_share is
  'The second highest of the daily peaks within 90 minutes of this time of day, over the last 7 days. With fewer than 3 such '
  'days, the highest of all samples.';
comment on column fleet.silence_usual.samples is 'How many samples the cohort has.';
comment on column fleet.silence_usual.days is 'On how many of the last 7 days there are samples around this time of day.';
comment on column fleet.silence_usual.computed_at is 'When it was computed.';

create table if not exists fleet.fleet_samples (
  sampled_at timestamptz not null,
  devices bigint not null,
  online bigint not null,
  late bigint not null,
  offline bigint not null,
  new bigint not null,
  clock_skewed bigint not null,
  unity_down bigint not null,
  constraint fleet_samples_pkey primary key (sampled_at)
);
comment on table fleet.fleet_samples is
  'fleet.fleet_summary of the whole fleet, one row each 10 minutes for the last 8 days. Read it through fleet.fleet_trend.';
comment on column fleet.fleet_samples.sampled_at is 'The start of the 10 minutes.';
comment on column fleet.fleet_samples.devices is 'Devices that were enrolled.';
comment on column fleet.fleet_samples.online is 'Devices that were online.';
comment on column fleet.fleet_samples.late is 'Devices that were late.';
comment on column fleet.fleet_samples.offline is 'Devices that were offline.';
comment on column fleet.fleet_samples.new is 'Devices that had not sent a heartbeat yet.';
comment on column fleet.fleet_samples.clock_skewed is 'Devices whose heartbeats were quarantined because of their clock.';
comment on column fleet.fleet_samples.unity_down is 'Devices that were online or late and whose Unity app was down.';

-- Availability by day

create table if not exists fleet.device_availability_daily (
  device_id bigint not null,
  day date not null,
  expected integer not null,
  seen integer not null,
  beats integer not null,
  heartbeat_interval interval not null,
  longest_gap interval not null,
  first_ts timestamptz,
  last_ts timestamptz,
  rolled_up_at timestamptz not null default now(),
  constraint device_availability_daily_pkey primary key (device_id, day),
  constraint device_availability_daily_seen_range check (seen >= 0 and seen <= expected and seen <= beats)
);
comment on table fleet.device_availability_daily is
  'The availability of each device on each past UTC day on which it was enrolled, counted by fleet.roll_up(). It outlives the '
  'heartbeats and is kept for fleet.settings.rollups_keep. Read it through the view fleet.device_availability.';
comment on column fleet.device_availability_daily.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_availability_daily.day is 'The day, in UTC.';
comment on column fleet.device_availability_daily.expected is
  'How many heartbeats were expected: as many as fit, at its interval, between enrollment or midnight and revocation or '
  'midnight.';
comment on column fleet.device_availability_daily.seen is
  'How many of the expected heartbeats came: the expected ones minus those missed in silences. A burst counts once.';
comment on column fleet.device_availability_daily.beats is 'How many heartbeats were stored.';
comment on column fleet.device_availability_daily.heartbeat_interval is
  'The device''s interval when the day was first rolled up. It stays when the day is counted again.';
comment on column fleet.device_availability_daily.longest_gap is
  'The longest silence of the day, from midnight or enrollment to midnight or revocation.';
comment on column fleet.device_availability_daily.first_ts is 'The first heartbeat of the day; null if there was none.';
comment on column fleet.device_availability_daily.last_ts is 'The last heartbeat of the day; null if there was none.';
comment on column fleet.device_availability_daily.rolled_up_at is
  'When the day was counted, or when a later count last changed it.';
create index if not exists device_availability_daily_day_idx on fleet.device_availability_daily (day);
comment on index fleet.device_availability_daily_day_idx is 'All devices of a day, and pruning.';

create table if not exists fleet.rolled_up_days (
  day date not null,
  devices integer not null,
  rolled_up_at timestamptz not null default now(),
  constraint rolled_up_days_pkey primary key (day)
);
comment on table fleet.rolled_up_days is 'The days that are in fleet.device_availability_daily.';
comment on column fleet.rolled_up_days.day is 'The day, in UTC.';
comment on column fleet.rolled_up_days.devices is
  'How many devices were enrolled on that day. If the number is different now, the night rolls the day up again.';
comment on column fleet.rolled_up_days.rolled_up_at is 'When the whole day was last rolled up.';

create table if not exists fleet.late_arrivals (
  device_id bigint not null,
  day date not null,
  arrived_at timestamptz not null default now()
) with (
  -- Ingest writes rows, which are deleted within the hour and never updated. So it is vacuumed after a fixed number of rows.
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_threshold = -1,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 10000
);
-- With a publication of all tables, DELETE needs a replica identity. A key would cost ingest an index.
alter table fleet.late_arrivals replica identity full;
comment on table fleet.late_arrivals is
  'Devices and past days whose heartbeats arrived after the day''s midnight, with a row for each arrival. If the day is rolled '
  'up already, it is counted again for these devices, and the rows are deleted.';
comment on column fleet.late_arrivals.device_id is 'fleet.devices.device_id.';
comment on column fleet.late_arrivals.day is 'The UTC day of the heartbeats.';
comment on column fleet.late_arrivals.arrived_at is 'When the heartbeats arrived.';

create table if not exists fleet.storage_daily (
  day date not null,
  rows_online bigint not null,
  bytes_online bigint not null,
  bytes_archived bigint not null,
  bytes_pushed bigint not null,
  database_bytes bigint not null,
  noted_at timestamptz not null,
  constraint storage_daily_pkey primary key (day)
);
comment on table fleet.storage_daily is
  'The size of the store as each night found it, kept for fleet.settings.rollups_keep. Read it through the view '
  'fleet.storage_history.';
comment on column fleet.storage_daily.day is 'The UTC day.';
comment on column fleet.storage_daily.rows_online is
  'Heartbeats in the database; for today''s partition, as many as the last ANALYZE found.';
comment on column fleet.storage_daily.bytes_online is 'Bytes of the partitions of these heartbeats, with indexes.';
comment on column fleet.storage_daily.bytes_archived is 'Bytes of all proven archives.';
comment on column fleet.storage_daily.bytes_pushed is
  'Bytes written to archives since setup, including archives that were replaced.';
comment on column fleet.storage_daily.database_bytes is 'Bytes of the whole database.';
comment on column fleet.storage_daily.noted_at is 'When this was recorded.';

-- Partitions and their archives

create table if not exists fleet.hb_partitions (
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
  cold_xid xid,
  relid_seal text,
  columns jsonb,
  columns_at timestamptz,
  checksum_version smallint,
  manifest_format smallint,
  counted jsonb,
  confirmed_at timestamptz,
  confirmed_by text,
  rows_hash numeric,
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
  'Every partition that ever existed, and where its rows are now. Only functions change state: active, detached, archiving, '
  'archived, dropped; also archive_failed and restored.';
comment on column fleet.hb_partitions.partition_name is 'The name of the table, as pg_partman made it.';
comment on column fleet.hb_partitions.relid is
  'The oid of the table; null if it is dropped or gone. After a dump was restored it names something else, so use '
  'fleet.table_of().';
comment on column fleet.hb_partitions.range_start is 'The first moment of the partition, a UTC midnight, from the catalog.';
comment on column fleet.hb_partitions.range_end is 'The first moment after the partition.';
comment on column fleet.hb_partitions.state is 'active, detached, archiving, archived, archive_failed, dropped or restored.';
comment on column fleet.hb_partitions.step is
  'The last step of archiving that was finished: claimed, frozen, exported, uploaded, proven.';
comment on column fleet.hb_partitions.row_count is 'Its rows, counted exactly when it was retired and when it was exported.';
comment on column fleet.hb_partitions.bytes_size is 'Its size on disk with indexes, in bytes, when it was last measured.';
comment on column fleet.hb_partitions.min_ts is 'The oldest ts in the partition, from the export.';
comment on column fleet.hb_partitions.max_ts is 'The newest ts in the partition, from the export.';
comment on column fleet.hb_partitions.checksum_sha256 is 'SHA-256 of the Parquet file, in hex.';
comment on column fleet.hb_partitions.content_checksum is
  'A checksum of the rows that does not depend on their order or format; see fleet.content_checksum().';
comment on column fleet.hb_partitions.archive_url is 'Where the Parquet file is.';
comment on column fleet.hb_partitions.archive_bytes is 'The size of the Parquet file in bytes.';
comment on column fleet.hb_partitions.created_at is 'When the partition was first seen.';
comment on column fleet.hb_partitions.detached_at is 'When the partition was retired.';
comment on column fleet.hb_partitions.archived_at is 'When the partition reached state archived.';
comment on column fleet.hb_partitions.proven_at is 'When the archive was read back and found to be equal.';
comment on column fleet.hb_partitions.dropped_at is 'When the table was dropped.';
comment on column fleet.hb_partitions.restored_at is 'When the partition was restored from its archive.';
comment on column fleet.hb_partitions.attempts is 'How often archiving has failed in a row.';
comment on column fleet.hb_partitions.next_attempt_at is
  'When the archiver tries again; null: in the next night, or after fleet.retry_archive(name).';
comment on column fleet.hb_partitions.last_error is 'Why the last attempt failed.';
comment on column fleet.hb_partitions.lease_owner is 'The archiver that is working on the partition.';
comment on column fleet.hb_partitions.lease_until is
  'The end of that archiver''s lease. Afterwards another one may take the partition.';
comment on column fleet.hb_partitions.held_reason is
  'Why the partition must not be retired, archived or dropped; null: it is not held.';
comment on column fleet.hb_partitions.held_by is 'The login that holds it.';
comment on column fleet.hb_partitions.is_proven_empty is
  'True if the table was locked and found to have no rows. It may be dropped without an archive.';
comment on column fleet.hb_partitions.cold_xid is
  'The transaction in which the partition became cold. The job fleet-freeze names the partition until a VACUUM (FREEZE) ran '
  'after that. Null: not cold.';
comment on column fleet.hb_partitions.relid_seal is 'fleet_guard.seal(relid) when relid was recorded; set by a trigger.';
comment on column fleet.hb_partitions.columns is
  'The columns of its archive, in order, as [{"name", "type"}]. Null for an archive from before 0.2 until the archiver has read '
  'its manifest.';
comment on column fleet.hb_partitions.columns_at is
  'The time at which the table had the columns of the archive; fleet.map_columns() follows later changes. Null: before the first'
  ' change in fleet.column_changes.';
comment on column fleet.hb_partitions.checksum_version is
  'The version of the definition of content_checksum; see fleet.content_checksum().';
comment on column fleet.hb_partitions.manifest_format is 'The format_version of the manifest of its archive.';
comment on column fleet.hb_partitions.counted is
  'The result of fleet.count_retired() for the current export; null before and after it.';
comment on column fleet.hb_partitions.confirmed_at is 'When the archive was confirmed by fleet.confirm_archive(); null: not yet.';
comment on column fleet.hb_partitions.confirmed_by is 'The login that confirmed it.';
comment on column fleet.hb_partitions.rows_hash is
  'fleet.rows_hash() of the retired table when its rows were counted. Null for an archive from before 0.2.';
create index if not exists hb_partitions_range_start_idx on fleet.hb_partitions (range_start);
comment on index fleet.hb_partitions_range_start_idx is 'Finds the partition of a moment.';

create table if not exists fleet.archivers (
  worker text not null,
  version text not null,
  started_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  constraint archivers_pkey primary key (worker)
);
comment on table fleet.archivers is 'The archivers, and when each of them last reported.';
comment on column fleet.archivers.worker is 'The name of the process: its host and pid.';
comment on column fleet.archivers.version is 'The version of the archiver.';
comment on column fleet.archivers.started_at is 'When it first reported.';
comment on column fleet.archivers.last_seen_at is 'When it last reported.';

create table if not exists fleet.restore_requests (
  request_id bigint generated always as identity,
  from_day date not null,
  to_day date not null,
  requested_at timestamptz not null default now(),
  requested_by text not null default session_user,
  constraint restore_requests_pkey primary key (request_id),
  constraint restore_requests_range check (from_day <= to_day)
);
comment on table fleet.restore_requests is 'Requests to restore archived days.';
comment on column fleet.restore_requests.request_id is 'The key, as fleet.request_restore() returned it.';
comment on column fleet.restore_requests.from_day is 'The first day to restore.';
comment on column fleet.restore_requests.to_day is 'The last day to restore.';
comment on column fleet.restore_requests.requested_at is 'When the request was made.';
comment on column fleet.restore_requests.requested_by is 'The login that made the request.';

create table if not exists fleet.restore_items (
  request_id bigint not null,
  partition_name text not null,
  state text not null default 'pending',
  lease_owner text,
  lease_until timestamptz,
  finished_at timestamptz,
  last_error text,
  left_out text,
  constraint restore_items_pkey primary key (request_id, partition_name),
  constraint restore_items_request_id_fkey foreign key (request_id) references fleet.restore_requests (request_id),
  constraint restore_items_partition_name_fkey foreign key (partition_name) references fleet.hb_partitions (partition_name),
  constraint restore_items_state_known check (state in ('pending', 'running', 'done', 'failed'))
);
comment on table fleet.restore_items is 'The partitions of each restore request.';
comment on column fleet.restore_items.request_id is 'fleet.restore_requests.request_id.';
comment on column fleet.restore_items.partition_name is 'fleet.hb_partitions.partition_name.';
comment on column fleet.restore_items.state is 'pending, running, done or failed.';
comment on column fleet.restore_items.lease_owner is 'The archiver that is working on the partition.';
comment on column fleet.restore_items.lease_until is 'The end of that archiver''s lease.';
comment on column fleet.restore_items.finished_at is 'When the restore was done or failed.';
comment on column fleet.restore_items.last_error is 'Why the restore failed.';
comment on column fleet.restore_items.left_out is
  'The columns of the archive that the table no longer has; their values stay in the archive. Null: none.';

-- Events, counters, runs and sessions

create table if not exists fleet.events (
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
comment on table fleet.events is
  'What the store did, append-only: partition.create, partition.archive.start, partition.archive.end, partition.drop, '
  'reconciliation.completed and others.';
comment on column fleet.events.event_id is 'The order of the events.';
comment on column fleet.events.at is 'When it happened.';
comment on column fleet.events.event is 'The name of the event.';
comment on column fleet.events.partition_name is 'The partition that the event is about, if any.';
comment on column fleet.events.run_id is 'The run of maintain() or nightly() that the event belongs to, if any.';
comment on column fleet.events.rows is 'How many rows were affected, if they were counted.';
comment on column fleet.events.duration_ms is 'How long it took, in milliseconds.';
comment on column fleet.events.is_ok is 'False if the event is a failure.';
comment on column fleet.events.detail is 'Anything else, written for a person.';
create index if not exists events_event_at_idx on fleet.events (event, at);
comment on index fleet.events_event_at_idx is 'Finds the last time that something happened.';
create index if not exists events_at_idx on fleet.events (at);
comment on index fleet.events_at_idx is 'For pruning by age.';
create index if not exists events_run_id_idx on fleet.events (run_id) where run_id is not null;
comment on index fleet.events_run_id_idx is 'The steps of one run.';
create index if not exists events_partition_name_idx on fleet.events (partition_name) where partition_name is not null;
comment on index fleet.events_partition_name_idx is 'The history of one partition.';

create table if not exists fleet.counters (
  counter text not null,
  total numeric not null default 0,
  constraint counters_pkey primary key (counter)
);
comment on table fleet.counters is 'Totals since setup, never pruned, for /metrics.';
comment on column fleet.counters.counter is 'The name of the metric.';
comment on column fleet.counters.total is 'The total.';
insert into fleet.counters (counter) values
  ('partitions_created_total'), ('partition_create_failures_total'),
  ('partitions_archived_total'), ('hb_partition_archived_total'), ('hb_partition_dropped_total'),
  ('archive_failures_total'), ('archive_bytes_pushed_total'), ('reconciliation_rows_updated_total')
on conflict do nothing;

create table if not exists fleet.slo_counts (
  slo text not null,
  minute timestamptz not null,
  server text not null,
  good bigint not null,
  bad bigint not null,
  constraint slo_counts_pkey primary key (slo, minute, server)
);
comment on table fleet.slo_counts is
  'What each server process counted for the error budgets, by minute, kept for a week. Read it through fleet.slo.';
comment on column fleet.slo_counts.slo is 'The name of the error budget, as in fleet.slo.';
comment on column fleet.slo_counts.minute is 'The start of the minute, by the clock of the server.';
comment on column fleet.slo_counts.server is 'The process that counted. Each process has its own name.';
comment on column fleet.slo_counts.good is 'How many succeeded in that minute.';
comment on column fleet.slo_counts.bad is 'How many failed in that minute.';

create sequence if not exists fleet.run_id_seq as bigint;
comment on sequence fleet.run_id_seq is 'Numbers the runs of maintain() and nightly().';

-- A run of maintenance runs the steps that the owner planned for it.
create table if not exists fleet.planned_steps (
  run_id bigint not null,
  position bigint not null,
  step text not null,
  partition_name text,
  day date,
  retention interval,
  as_of timestamptz not null,
  pid integer not null,
  constraint planned_steps_pkey primary key (run_id, position)
);
comment on table fleet.planned_steps is
  'The steps that a run of maintenance still has to do; empty between runs. Written by fleet.begin_run(), fleet.run_next_step() '
  'and fleet.end_run() only.';
comment on column fleet.planned_steps.run_id is 'The run, as in fleet.events.';
comment on column fleet.planned_steps.position is 'The order of the steps.';
comment on column fleet.planned_steps.step is
  'The step. A step that begins with plan_ is replaced by one step for each day or partition that it finds.';
comment on column fleet.planned_steps.partition_name is 'The partition of the step, if it has one.';
comment on column fleet.planned_steps.day is 'The UTC day of the step, if it has one.';
comment on column fleet.planned_steps.retention is 'The retention that was requested for the run; null: that of fleet.settings.';
comment on column fleet.planned_steps.as_of is 'The time that the run uses as now.';
comment on column fleet.planned_steps.pid is 'The backend of the run; no other one may run its steps.';

create table if not exists fleet.cursors (
  cursor_name text not null,
  position bigint not null,
  constraint cursors_pkey primary key (cursor_name)
);
comment on table fleet.cursors is 'Where work that is done in portions continues.';
comment on column fleet.cursors.cursor_name is 'The name of the work: reconcile.';
comment on column fleet.cursors.position is 'The key of the last row that was done; 0: start from the beginning.';

-- A logout ends a session of the ops page on every server.
create table if not exists fleet.ended_sessions (
  session_hash bytea not null,
  ends_at timestamptz not null,
  constraint ended_sessions_pkey primary key (session_hash),
  constraint ended_sessions_hash_is_sha256 check (length(session_hash) = 32)
);
comment on table fleet.ended_sessions is
  'Sessions of the ops page that were ended by a logout. Kept until they would have expired anyway.';
comment on column fleet.ended_sessions.session_hash is
  'SHA-256 of the text in the cookie without its signature, so that nobody can log in with it.';
comment on column fleet.ended_sessions.ends_at is 'When the cookie expires; the next logout after that removes the row.';

-- The import of a plain table of heartbeats

create table if not exists fleet.imports (
  source text not null,
  relid oid not null,
  filenode oid,
  state text not null,
  steps text[] not null default '{}',
  step text,
  pass integer not null default 0,
  columns jsonb not null,
  unknown_devices text not null,
  oldest timestamptz not null,
  is_oldest_given boolean not null,
  forwards boolean not null,
  match_by text not null,
  store_ip text not null,
  next_block bigint,
  end_block bigint,
  batch_blocks integer,
  next_partition timestamptz,
  rows_read bigint not null default 0,
  rows_stored bigint not null default 0,
  rows_duplicate bigint not null default 0,
  rows_refused bigint not null default 0,
  rows_written_back bigint not null default 0,
  rows_not_written_back bigint not null default 0,
  verified_xid xid8,
  backend integer,
  step_started_at timestamptz,
  step_from bigint not null default 0,
  step_done bigint not null default 0,
  step_total bigint not null default 0,
  step_rows bigint not null default 0,
  started_by text not null default session_user,
  started_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  moved_at timestamptz,
  verified_at timestamptz,
  confirmed_at timestamptz,
  abandoned_at timestamptz,
  last_error text,
  relid_seal text,
  constraint imports_pkey primary key (source),
  constraint imports_state_known check (state in ('moving', 'moved', 'verified', 'confirmed', 'abandoning', 'abandoned')),
  constraint imports_unknown_devices_known check (unknown_devices in ('refuse', 'enroll')),
  constraint imports_match_by_known check (match_by in ('device_id', 'alias', 'map')),
  constraint imports_verified_has_xid check (state <> 'verified' or verified_xid is not null)
);
comment on table fleet.imports is
  'Each plain table that is being imported into fleet.device_heartbeats by fleet.import_table(), or was, and its progress. Read '
  'it through fleet.import_progress.';
comment on column fleet.imports.source is 'The table with its schema, for example public.device_heartbeats.';
comment on column fleet.imports.relid is 'The oid of the table.';
comment on column fleet.imports.filenode is
  'The file of the table when the step began. If the table is rewritten (VACUUM FULL, CLUSTER), it is read again from the start.';
comment on column fleet.imports.state is
  'moving, moved, verified, confirmed, abandoning or abandoned. Only functions change it.';
comment on column fleet.imports.steps is 'The steps that are left, in order; empty if nothing is in progress.';
comment on column fleet.imports.step is 'The first of these steps, once it has begun.';
comment on column fleet.imports.pass is
  'How many times the table was read from its first block to its last, including the current pass.';
comment on column fleet.imports.columns is
  'For each column of fleet.device_heartbeats, the column of the table that it is taken from; null: none.';
comment on column fleet.imports.unknown_devices is
  'refuse: rows of devices that are not enrolled stay in the table; enroll: these devices are enrolled.';
comment on column fleet.imports.oldest is
  'A row that is older than this is refused as too_old, because the clock of its device was wrong.';
comment on column fleet.imports.is_oldest_given is 'Whether the caller chose oldest.';
comment on column fleet.imports.forwards is 'Whether a trigger forwards what is written to the table during the import.';
comment on column fleet.imports.match_by is
  'What the table''s device ids are: device_id or alias of fleet.devices, or keys of fleet.import_devices (map).';
comment on column fleet.imports.store_ip is
  'fleet.settings.store_ip when the import began, so that rows can still be compared after it was changed.';
comment on column fleet.imports.next_block is 'The cursor: the first block of the table that the step has not read.';
comment on column fleet.imports.end_block is
  'The first block that the step does not read: the size of the table when the step began.';
comment on column fleet.imports.batch_blocks is 'How many blocks the next batch reads, based on the rows of the last one.';
comment on column fleet.imports.next_partition is 'The cursor of writing back: the start of the last partition that was read.';
comment on column fleet.imports.rows_read is 'Rows that this pass read.';
comment on column fleet.imports.rows_stored is 'Rows that this pass stored.';
comment on column fleet.imports.rows_duplicate is
  'Rows whose device and 10-second bucket already had a heartbeat. In a second pass this includes what the first pass stored.';
comment on column fleet.imports.rows_refused is 'Rows that this pass left in the table; see fleet.import_refusals.';
comment on column fleet.imports.rows_written_back is 'Heartbeats that fleet.abandon_import() wrote back to the table.';
comment on column fleet.imports.rows_not_written_back is 'Heartbeats that the table refused; the reasons are in fleet.events.';
comment on column fleet.imports.verified_xid is 'The verification saw the rows of all transactions before this one.';
comment on column fleet.imports.backend is 'The backend that is working on the import, or was the last to.';
comment on column fleet.imports.step_started_at is 'When the step was started or resumed.';
comment on column fleet.imports.step_from is 'step_done at that time.';
comment on column fleet.imports.step_done is
  'How much of the step is done: in blocks, rows (when it verifies), days or partitions.';
comment on column fleet.imports.step_total is 'How much the step has to do, in the same unit.';
comment on column fleet.imports.step_rows is 'Rows since step_started_at.';
comment on column fleet.imports.started_by is 'The login that began the import.';
comment on column fleet.imports.started_at is
  'When the import began. If it is abandoned, heartbeats received since then are written back.';
comment on column fleet.imports.updated_at is 'When it last made progress.';
comment on column fleet.imports.moved_at is 'When the last pass ended.';
comment on column fleet.imports.verified_at is 'When the last verification ended.';
comment on column fleet.imports.confirmed_at is 'When the import was confirmed.';
comment on column fleet.imports.abandoned_at is 'When the import was abandoned.';
comment on column fleet.imports.last_error is 'Why it stopped; null while it continues.';
comment on column fleet.imports.relid_seal is 'fleet_guard.seal(relid) when relid was recorded; set by a trigger.';

create table if not exists fleet.import_devices (
  source text not null,
  source_device text not null,
  device_id bigint not null,
  constraint import_devices_pkey primary key (source, source_device),
  constraint import_devices_device_id_fkey foreign key (device_id) references fleet.devices (device_id) on delete cascade
);
comment on table fleet.import_devices is
  'Maps a table''s own device ids to fleet.devices, for ids that are neither device_id nor alias. Fill it before '
  'fleet.import_table(). If a table has rows here, its ids without a row are unknown.';
comment on column fleet.import_devices.source is 'The table with its schema, for example public.device_heartbeats.';
comment on column fleet.import_devices.source_device is 'The device id in that table, as text.';
comment on column fleet.import_devices.device_id is 'The device in fleet.devices.';
create index if not exists import_devices_device_id_idx on fleet.import_devices (device_id);
comment on index fleet.import_devices_device_id_idx is 'For the foreign key.';

create table if not exists fleet.import_days (
  source text not null,
  day date not null,
  rows_found bigint not null default 0,
  rows_stored bigint not null default 0,
  rows_kept bigint,
  rows_duplicate bigint,
  rows_missing bigint,
  rows_changed bigint,
  source_checksum numeric,
  store_checksum numeric,
  checked_at timestamptz,
  constraint import_days_pkey primary key (source, day)
);
comment on table fleet.import_days is
  'The heartbeats of an imported table by UTC day: how many there are, how many were stored, and what fleet.verify_import() '
  'found. Example: select * from fleet.import_days where rows_missing + rows_changed > 0;';
comment on column fleet.import_days.source is 'The table.';
comment on column fleet.import_days.day is 'The UTC day of ts.';
comment on column fleet.import_days.rows_found is 'Rows of that day that may be stored, when they were last counted.';
comment on column fleet.import_days.rows_stored is
  'Rows of that day that the import stored, in all passes, without those that the trigger forwarded.';
comment on column fleet.import_days.rows_kept is 'Rows that are in the store with the same content.';
comment on column fleet.import_days.rows_duplicate is 'Rows whose device and bucket already belong to another row.';
comment on column fleet.import_days.rows_missing is 'Rows that should be in the store and are not.';
comment on column fleet.import_days.rows_changed is 'Rows that are in the store with different content.';
comment on column fleet.import_days.source_checksum is
  'The checksum of the table''s rows that were to be kept, as fleet.content_checksum() makes it.';
comment on column fleet.import_days.store_checksum is 'The same checksum of what the store has of these rows.';
comment on column fleet.import_days.checked_at is 'When this verification compared the day; null: not yet.';

create table if not exists fleet.import_refusals (
  source text not null,
  reason text not null,
  source_device text not null default '',
  rows bigint not null,
  first_ts timestamptz,
  last_ts timestamptz,
  constraint import_refusals_pkey primary key (source, reason, source_device),
  constraint import_refusals_reason_known check (
    reason in ('no_ts', 'too_old', 'in_future', 'unknown_device', 'retired_day', 'unreadable')
  )
);
comment on table fleet.import_refusals is
  'Rows that were left in a table, by reason, when they were last counted; fleet.refused_rows() shows them. Example: select * '
  'from fleet.import_refusals;';
comment on column fleet.import_refusals.source is 'The table.';
comment on column fleet.import_refusals.reason is
  'no_ts; too_old (see oldest in fleet.imports); in_future (further ahead of its arrival than max_future); unknown_device; '
  'retired_day (the day is in the archive: restore it first); unreadable (a value does not fit its type).';
comment on column fleet.import_refusals.source_device is 'For unknown_device: the device id in the table.';
comment on column fleet.import_refusals.rows is 'How many rows.';
comment on column fleet.import_refusals.first_ts is 'The oldest ts of these rows.';
comment on column fleet.import_refusals.last_ts is 'The newest ts of these rows.';

create table if not exists fleet.import_ranges (
  source text not null,
  first_block bigint not null,
  last_block bigint not null,
  first_ts timestamptz,
  last_ts timestamptz,
  rows_refused bigint not null,
  constraint import_ranges_pkey primary key (source, first_block)
);
comment on table fleet.import_ranges is
  'Where the days are in a table, so that one day can be read without an index, as with BRIN. Computed again with each count.';
comment on column fleet.import_ranges.source is 'The table.';
comment on column fleet.import_ranges.first_block is 'The first block of the range.';
comment on column fleet.import_ranges.last_block is 'The first block after the range.';
comment on column fleet.import_ranges.first_ts is 'The oldest ts in the range that may be stored; null: none.';
comment on column fleet.import_ranges.last_ts is 'The newest ts in the range that may be stored.';
comment on column fleet.import_ranges.rows_refused is 'Rows in the range that were refused.';

do $$
begin
  if to_regtype('fleet.source_row') is null then
    create type fleet.source_row as (
      tid tid,
      source_device text,
      reason text,
      beat fleet.device_heartbeats
    );
  end if;
end
$$;
comment on type fleet.source_row is
  'A row of a table that is being imported: where it is, and the heartbeat that it becomes, or why it becomes none.';

create table if not exists fleet.recorded_triggers (
  relation text not null,
  trigger_name text not null,
  definition text not null,
  constraint recorded_triggers_pkey primary key (relation, trigger_name)
);
comment on table fleet.recorded_triggers is
  'The triggers that the migrations made. fleet.check() fails if one is missing. A migration that drops a trigger deletes its '
  'row.';
comment on column fleet.recorded_triggers.relation is 'Table that the trigger is on, with its schema.';
comment on column fleet.recorded_triggers.trigger_name is 'Name of the trigger.';
comment on column fleet.recorded_triggers.definition is 'The statement that creates it, as pg_get_triggerdef() prints it.';

-- What can be replaced in place, in the order in which Postgres needs it: it checks views and functions in SQL when they are
-- made.
--! Included archive/accept_archive.sql
create or replace function fleet.accept_archive(p_partition text, p_reason text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_found record;
  v_since timestamptz := clock_timestamp();
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format(
        'partition %s is not dropped: no reason was given for keeping only its archive', coalesce(p_partition, 'null')
      ),
      hint = format(
        'Give a reason, for example: select fleet.accept_archive(%L, ''changed by mistake, case 4711'');', p_partition
      );
  end if;
  -- This takes many seconds for a large day, so it happens before the partition's row is locked.
  select * into v_found
  from fleet.hb_partitions p
  cross join lateral fleet.compare_with_archive(p.partition_name)
  where p.partition_name = p_partition and p.state in ('detached', 'archive_failed', 'archived');

  v_partition := fleet.get_partition(p_partition);
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and is not dropped', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if v_found.table_oid is null or v_partition.state not in ('detached', 'archive_failed', 'archived') then
    raise exception using
      errcode = 'FL002',
      message = format(
        'partition %s is %s, and there is no retired table to compare with its archive', p_partition, v_partition.state
      ),
      hint = format('See select * from fleet.partition_health where partition_name = %L;', p_partition);
  end if;
  if v_partition.proven_at is null or v_partition.checksum_sha256 is null or v_partition.archive_url is null then
    raise exception using
      errcode = 'FL001',
      message = format('partition %s is %s and has no proven archive; it is not dropped', p_partition, v_partition.state),
      hint = format('Run select fleet.archive_partition(%L); and wait for state archived.', p_partition);
  end if;
  if v_partition.confirmed_at is null and (select s.proofs_needed from fleet.settings s) > 1 then
    raise exception using
      errcode = 'FL001',
      message = format(
        'the archive of partition %s is not confirmed by a second login; the partition is not dropped', p_partition
      ),
      hint = 'In a shell with VERIFIER_DATABASE_URL set, run: npm run archive -- confirm. '
        'It confirms only partitions in state archived.';
  end if;
  if not v_found.differs and v_partition.state = 'archived' then
    return format('partition %s has the same rows as its archive; there is nothing to accept', p_partition);
  end if;

  perform fleet.record_event(
    'partition.archive.accept', p_partition, v_found.row_count,
    p_detail => format(
      'by %s: %s. Dropped: %s rows of checksum %s. Archive: %s rows of checksum %s, %s',
      session_user, p_reason, v_found.row_count, v_found.content_checksum,
      v_partition.row_count, v_partition.content_checksum, v_partition.archive_url
    )
  );
  update fleet.hb_partitions
  set state = 'archived', step = 'proven', attempts = 0, next_attempt_at = null
  where partition_name = p_partition;
  perform fleet.drop_retired(p_partition, v_found.table_oid, v_since);
  return format('partition %s is dropped; its archive is kept as the correct copy', p_partition);
end
$$;

comment on function fleet.accept_archive(text, text) is
  'Drops a retired table that differs from its proven archive, when the archive is the correct copy. fleet.events records who '
  'did this, why, and what was dropped. Run npm run archive -- verify first. If the table is the correct copy instead, call '
  'fleet.retry_archive(). '
  'Example: select fleet.accept_archive(''device_heartbeats_p2026_08_15'', ''changed by mistake'');';
--! EndIncluded archive/accept_archive.sql
--! Included archive/archive_columns.sql
create or replace function fleet.archive_columns(p_table regclass)
returns table (name text, type text, "position" integer)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  v_unknown := fleet.unarchivable_columns(p_table);
  if v_unknown is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be archived: the archive has no form for %s', p_table, v_unknown),
      hint = 'Use a type for which fleet.archive_form(type) returns a form, or add a form for this type to '
        'sql/archive/archive_form.sql, sql/setup/shape-guard.sql and archiver/archive/parquet.ts.';
  end if;
  return query
    select a.attname::text, format_type(a.atttypid, a.atttypmod), (row_number() over (order by a.attnum))::integer
    from pg_attribute a
    where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    order by a.attnum;
end
$$;

comment on function fleet.archive_columns(regclass) is
  'Lists the columns of a partition as they are archived, in order. Raises an error if a column has a type without an archive '
  'form; see fleet.archive_form().';
--! EndIncluded archive/archive_columns.sql
--! Included archive/archive_form.sql
-- The list of types that can be archived, each with its form: the canonical text of its values. The same list for DuckDB is in
-- archiver/archive/parquet.ts, and the names of the types are in sql/setup/shape-guard.sql.
-- A type may come from a manifest and becomes part of a statement, so its whole text has to match.
create or replace function fleet.archive_form(p_type text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_type in ('smallint', 'integer', 'bigint', 'boolean', 'uuid') or p_type ~ '^numeric(\(\d+,-?\d+\))?$' then
      $f$%1$I::text$f$
    when p_type in ('text', 'jsonb', 'text[]') then
      $f$octet_length(%1$I::text) || ':' || %1$I::text$f$
    when p_type = 'inet' then
      $f$octet_length(abbrev(%1$I)) || ':' || abbrev(%1$I)$f$
    when p_type ~ '^timestamp(\(\d\))? with(out)? time zone$' then
      $f$case when isfinite(%1$I) then trunc(extract(epoch from %1$I) * 1000000)::text else %1$I::text end$f$
    when p_type = 'date' then
      $f$case when isfinite(%1$I) then (%1$I - date '1970-01-01')::text else %1$I::text end$f$
    when p_type = 'double precision' then
      -- The bits, because Postgres and DuckDB print different texts. NaN has many bit patterns, so it is written by name.
      $f$case when %1$I = 'NaN' then 'NaN' else ('x' || encode(float8send(%1$I), 'hex'))::bit(64)::text end$f$
  end;
$$;

comment on function fleet.archive_form(text) is
  'The SQL expression for the canonical text of a non-null value of this type, as a format() string that takes the column''s '
  'name. Null if the type cannot be archived. '
  'Example: select fleet.archive_form(''numeric(10,2)'');';
--! EndIncluded archive/archive_form.sql
--! Included archive/archive_partition.sql
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
    return format('partition %s is already %s', p_partition, v_partition.state);
  end if;
  if v_partition.state in ('active', 'restored') then
    perform fleet.retire_partition(p_partition);
  end if;
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s is waiting for the archiver', p_partition);
end
$$;

comment on function fleet.archive_partition(text) is
  'Retires one past partition now and wakes the archiver. '
  'Example: select fleet.archive_partition(partition_name) from fleet.partition_health where range_start <= current_date - 60 '
  'and range_end > current_date - 60;';
--! EndIncluded archive/archive_partition.sql
--! Included archive/archiver_heartbeat.sql
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

comment on function fleet.archiver_heartbeat(text, text) is 'Records that an archiver is alive, and its version.';
--! EndIncluded archive/archiver_heartbeat.sql
--! Included archive/archives.view.sql
create or replace view fleet.archives as
select p.partition_name, p.range_start, p.range_end, p.state, p.row_count, p.min_ts, p.max_ts, p.archive_bytes,
  p.checksum_sha256, p.content_checksum, p.archive_url, p.proven_at,
  p.columns, p.checksum_version, p.manifest_format, p.confirmed_at, p.confirmed_by
from fleet.hb_partitions p
where p.proven_at is not null and p.archive_url is not null
order by p.range_start;

comment on view fleet.archives is
  'Every proven archive: date range, rows, checksums, location, columns, and when it was proven and confirmed. '
  'Example: select * from fleet.archives where range_start >= now() - interval ''1 year'';';
--! EndIncluded archive/archives.view.sql
--! Included archive/restoring_name.sql
-- Not the name of the partition: a day without rows may be created again while it is restored, and is then retired under that
-- name.
create or replace function fleet.restoring_name(p_partition text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select left('restoring_' || p_partition, 63);
$$;

comment on function fleet.restoring_name(text) is
  'The name of the table in schema fleet that a restore is copied into, until it is proven and becomes the partition.';
--! EndIncluded archive/restoring_name.sql
--! Included archive/begin_restore.sql
create or replace function fleet.begin_restore(p_partition text, p_worker text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_table text := fleet.restoring_name(p_partition);
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
  if v_partition.columns is null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is not restored: the columns of its archive are not recorded', p_partition),
      hint = 'The archiver records them from the manifest. Run the archiver version that belongs to this database.';
  end if;
  perform fleet.require_forms(p_partition, v_partition.columns);
  -- An attempt that was cut short may have left its table.
  perform fleet.drop_restoring(p_partition);
  -- The table gets the archive's columns, because the proof needs them. fleet.finish_restore() later changes them to today's
  -- columns.
  execute format('create table fleet.%I (%s)', v_table, (
    select string_agg(format('%I %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality)
    from jsonb_array_elements(v_partition.columns) with ordinality c
  ));
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_restore(text, text) is
  'Creates the empty table for a restore, with the columns of the archive, and returns its name.';
--! EndIncluded archive/begin_restore.sql
--! Included import/get_import.sql
create or replace function fleet.get_import(p_source regclass) returns fleet.imports
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports;
begin
  perform fleet.relink_tables();
  select f.* into a
  from fleet.imports f
  where f.relid = p_source
  for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('%s is not being imported', coalesce(p_source::text, 'null')),
      hint = format(
        'See all imports: select * from fleet.import_progress; to begin one: call fleet.import_table(%L);', p_source::text
      );
  end if;
  return a;
end
$$;

comment on function fleet.get_import(regclass) is 'The import of a table, locked; raises an error if there is none.';
--! EndIncluded import/get_import.sql
--! Included archive/check_archive_place.sql
-- An archive with a range in the future would prevent the partitions of that range from being created. And the archiver fetches
-- from the URL, so it must be in a known store.
create or replace function fleet.check_archive_place(p_range_start timestamptz, p_range_end timestamptz, p_archive_url text)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_day text;
  v_root text;
  v_known text[];
begin
  if p_range_start is null or p_range_end is null or not isfinite(p_range_start) or not isfinite(p_range_end)
    or p_range_start <> date_trunc('day', p_range_start) or p_range_end > clock_timestamp()
    or p_range_end not in (
      p_range_start + interval '1 day',
      p_range_start
        + case when p_range_start = date_trunc('month', p_range_start) then interval '1 month' else interval '1 day' end
    ) then
    raise exception using
      errcode = 'FL422',
      message = format(
        'the archive of %s to %s is not registered: its range is not a past UTC day or month', p_range_start, p_range_end
      ),
      hint = 'Check range_start and range_end in the manifest of the archive.';
  end if;
  v_day := to_char(p_range_start, 'YYYY-MM-DD');
  v_root := substring(
    p_archive_url
    from '^((?:file:///|s3://[^/]).*)/device_heartbeats/date=' || v_day || '/device_heartbeats_[0-9]+(?:_r[0-9]+)?\.parquet$'
  );
  if v_root is null or v_root ~ '(^|/)\.\.?(/|$)' then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a valid place for the archive of %s', coalesce(p_archive_url, 'null'), v_day),
      hint = format(
        'The place must be <store>/device_heartbeats/date=%s/device_heartbeats_%s.parquet.',
        v_day, to_char(p_range_start, 'YYYYMMDD')
      );
  end if;
  -- If no store is known yet, the first archive decides which one it is.
  select array_agg(distinct s.url) into v_known
  from (
    select substring(p.archive_url from '^(.*)/device_heartbeats/date=') as url
    from fleet.hb_partitions p
    where p.archive_url is not null
    union all
    select unnest(k.archive_stores) from fleet.settings k
  ) s
  where s.url is not null;
  if v_root <> all (v_known) then
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s is not a known store of this database (%s); nothing is registered', v_root, array_to_string(v_known, ', ')
      ),
      hint = format('If you trust this store: update fleet.settings set archive_stores = archive_stores || %L;', v_root);
  end if;
end
$$;

comment on function fleet.check_archive_place(timestamptz, timestamptz, text) is
  'Raises an error unless the archive to register covers a past UTC day or month and is at its proper place in a known store.';
--! EndIncluded archive/check_archive_place.sql
--! Included archive/check_lease.sql
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
      hint = 'The lease ran out and another archiver may have taken it: stop working on this partition.';
  end if;
  return v_partition;
end
$$;

comment on function fleet.check_lease(text, text) is
  'Returns the partition''s row, locked, if this archiver holds its lease. Raises an error otherwise.';
--! EndIncluded archive/check_lease.sql
--! Included archive/checksum_expression.sql
create or replace function fleet.checksum_expression(
  p_table regclass,
  p_columns jsonb default null,
  p_checksum_version integer default null
) returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_columns jsonb := p_columns;
  v_unknown text;
begin
  if v_columns is null then
    select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) into v_columns
    from fleet.archive_columns(p_table) c;
  end if;
  if p_checksum_version not in (1, 2) then
    raise exception using
      errcode = 'FL422',
      message = format('checksum version %s is unknown; this database knows versions 1 and 2', p_checksum_version),
      hint = 'A newer version of this software wrote the archive. Migrate the database with that version.';
  end if;

  -- Version 2 has more types than version 1. The types of version 1 have the same text in both.
  select string_agg(format('%s %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality) into v_unknown
  from jsonb_array_elements(v_columns) with ordinality c
  where fleet.archive_form(c.value ->> 'type') is null
    or (p_checksum_version = 1 and c.value ->> 'type' not in (
      'timestamp with time zone', 'smallint', 'integer', 'bigint', 'boolean', 'text', 'inet'
    ));
  if v_unknown is not null then
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s has no checksum%s: the archive has no form for %s', p_table, ' of version ' || p_checksum_version, v_unknown
      ),
      hint = 'The known forms are in sql/archive/archive_form.sql and archiver/archive/parquet.ts.';
  end if;
  select string_agg(c.value ->> 'name', ', ' order by c.ordinality) into v_unknown
  from jsonb_array_elements(v_columns) with ordinality c
  where not exists (
    select from pg_attribute a
    where a.attrelid = p_table and a.attname = c.value ->> 'name' and a.attnum > 0 and not a.attisdropped
  );
  if v_unknown is not null then
    raise exception using
      errcode = 'FL010',
      message = format('%s lacks columns that its checksum covers: %s', p_table, v_unknown),
      hint = 'The table was changed after it was retired. Hold its partition while you look: fleet.hold_partition().';
  end if;

  return (
    select format(
      $f$('x' || left(md5(%s), 15))::bit(60)::bigint$f$,
      string_agg(
        format($f$coalesce(%s, '~')$f$, format(fleet.archive_form(c.value ->> 'type'), c.value ->> 'name')),
        $f$ || '|' || $f$ order by c.ordinality
      )
    )
    from jsonb_array_elements(v_columns) with ordinality c
  );
end
$$;

comment on function fleet.checksum_expression(regclass, jsonb, integer) is
  'Builds the SQL expression for the checksum of one row, from the canonical texts of these columns (default: all columns of '
  'the table). See fleet.content_checksum().';
--! EndIncluded archive/checksum_expression.sql
--! Included archive/claim_partition.sql
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
      or (p.state = 'archived' and p.proven_at + s.archive_grace <= now() and (s.proofs_needed = 1 or p.confirmed_at is not null))
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
    select p.partition_name, fleet.table_of(p), format('fleet_detached.%I', p.partition_name), p.range_start, p.range_end,
      p.state, p.step, p.attempts, p.row_count, p.content_checksum, p.checksum_sha256, p.archive_url, p.archive_bytes, p.min_ts,
      p.max_ts
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_partition(text, interval) is
  'Gives this archiver a lease on the oldest partition that is waiting to be archived or dropped. Returns no row if there is '
  'none.';
--! EndIncluded archive/claim_partition.sql
--! Included archive/claim_restore.sql
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
  -- These partitions are already back: two requests named them, or a day without rows was created again. An archiver that is
  -- still working on one of them finds that out at its next step.
  for v_name in
    update fleet.restore_items i
    set state = 'done', finished_at = now(), last_error = null, lease_owner = null, lease_until = null
    from fleet.hb_partitions p
    where p.partition_name = i.partition_name
      and p.state <> 'dropped'
      and (i.state = 'pending' or i.state = 'running' and i.lease_until < now())
    returning i.partition_name
  loop
    perform fleet.drop_restoring(v_name);
  end loop;

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
  -- Another request for the same partition may have been claimed a moment ago.
  perform fleet.get_partition(v_name);
  if exists (
    select from fleet.restore_items o
    where o.partition_name = v_name and o.state = 'running' and o.lease_until >= now()
  ) then
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
  'Gives this archiver a lease on the next partition that is to be restored. Returns no row if there is none.';
--! EndIncluded archive/claim_restore.sql
--! Included archive/compare_with_archive.sql
-- Call it before you lock the partition's row: the checksum of a large day takes many seconds, and the archiver has to be able to
-- renew its lease in that row.
create or replace function fleet.compare_with_archive(p_partition text)
returns table (table_oid oid, row_count bigint, content_checksum numeric, differs boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_partition fleet.hb_partitions;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL002',
      message = format(
        'this transaction is %s and would not see rows that were written since it began', current_setting('transaction_isolation')
      ),
      hint = 'Call it in a read committed transaction of its own.';
  end if;
  perform fleet.relink_tables();  -- so that a renamed table does not count as gone
  select * into v_partition from fleet.hb_partitions p where p.partition_name = p_partition;
  table_oid := fleet.table_of(v_partition);
  if table_oid is null then
    return;
  end if;
  -- LOCK TABLE requires the right to write, which nobody has here. This statement changes nothing. It blocks writers, but not
  -- readers, until the end of the transaction.
  execute format('alter table %s disable trigger user', table_oid::regclass);
  if v_partition.rows_hash is not null then
    execute format('select count(*) from only %s', table_oid::regclass) into row_count;
    if row_count = v_partition.row_count and fleet.rows_hash(table_oid) = v_partition.rows_hash then
      content_checksum := v_partition.content_checksum;
      differs := false;
      return next;
      return;
    end if;
  end if;
  -- If there is no hash, or it differs, the slow comparison decides: after a dump and restore the same rows may hash differently.
  select c.row_count, c.content_checksum into row_count, content_checksum
  from fleet.content_checksum(table_oid, v_partition.columns, coalesce(v_partition.checksum_version, 1)) c;
  -- A partition that was proven to be empty has no archive.
  differs := (row_count, content_checksum)
    is distinct from (coalesce(v_partition.row_count, 0), coalesce(v_partition.content_checksum, 0));
  return next;
end
$$;

comment on function fleet.compare_with_archive(text) is
  'Compares the rows of a retired table with the count and checksum of its archive, and blocks writers to the table until the '
  'end of the transaction. Returns no row if there is no table.';
--! EndIncluded archive/compare_with_archive.sql
--! Included archive/confirm_archive.sql
-- The archiver gives the first proof. If settings.proofs_needed is 2, nothing is dropped on the archiver's word alone.
create or replace function fleet.confirm_archive(
  p_partition text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  -- The login decides, not the current role: a login that can act as the archiver cannot give a second proof.
  if pg_has_role(session_user, 'fleet_archiver', 'member') then
    raise exception using
      errcode = 'FL002',
      message = format('%s may act as the archiver, so it cannot confirm what the archiver proved', session_user),
      hint = 'Confirm with a login that is a member of fleet_verifier and of no other role of the store.';
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'archived' then
    raise exception using
      errcode = 'FL002',
      message = format(
        'partition %s is %s; an archive can be confirmed only while its partition is archived and not dropped',
        p_partition, v_partition.state
      ),
      hint = format('See select * from fleet.archives where partition_name = %L;', p_partition);
  end if;
  if (p_checksum_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.content_checksum, v_partition.row_count, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the archive of %s, as %s read it, differs from what was archived; the partition is kept', p_partition, session_user
      ),
      detail = format(
        'sha256 %s, read %s; content checksum %s, read %s; rows %s, read %s; from %s to %s, read %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256, v_partition.content_checksum, p_content_checksum,
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = format(
        'Keep the partition until this is resolved: select fleet.hold_partition(%L, ''its archive differs'');', p_partition
      );
  end if;
  if v_partition.confirmed_at is not null then
    return false;
  end if;
  update fleet.hb_partitions
  set confirmed_at = now(), confirmed_by = session_user
  where partition_name = p_partition;
  perform fleet.record_event('partition.archive.confirm', p_partition, p_row_count, p_detail => session_user::text);
  perform pg_notify('fleet_archiver', p_partition);
  return true;
end
$$;

comment on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz) is
  'Records that a second login read the archive back and found these rows. Returns false if it was already confirmed. Required '
  'before a drop if settings.proofs_needed is 2. Used by: npm run archive -- confirm.';
--! EndIncluded archive/confirm_archive.sql
--! Included archive/content_checksum.sql
-- Runs with the caller's rights and in the caller's snapshot, so it sees the same rows as other statements of that transaction.
create or replace function fleet.content_checksum(
  p_table regclass,
  p_columns jsonb default null,
  p_checksum_version integer default null,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'select count(*), coalesce(sum(%s), 0), min(ts), max(ts) from %s',
    fleet.checksum_expression(p_table, p_columns, p_checksum_version), p_table
  ) into row_count, content_checksum, min_ts, max_ts;
end
$$;

comment on function fleet.content_checksum(regclass, jsonb, integer) is
  'Returns the number of rows of a partition, a checksum that does not depend on order or format, and the oldest and newest ts. '
  'p_columns: the columns to cover, as in fleet.hb_partitions.columns; default: all columns of the table. p_checksum_version: '
  'the definition to use; default: the newest. '
  'Example: select p.partition_name, c.* from fleet.partition_health p cross join '
  'fleet.content_checksum(format(''fleet_detached.%I'', p.partition_name)::regclass) c where p.state = ''detached'';';
--! EndIncluded archive/content_checksum.sql
--! Included archive/count_retired.sql
-- A drop relies on this count, so it is made with the owner's rights. What the archiver says that it copied is compared with it.
create or replace function fleet.count_retired(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_columns jsonb default null,
  p_checksum_version integer default 1,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_variable
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_columns jsonb;
  v_hash numeric;
begin
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is not null then
    -- Nobody has been allowed to write to the table since it was detached. Counting a large day takes many seconds, so it happens
    -- before the row is locked, and the archiver can renew its lease meanwhile.
    select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) into v_columns
    from fleet.archive_columns(v_table) c;
    select s.row_count, s.content_checksum, s.min_ts, s.max_ts
    into row_count, content_checksum, min_ts, max_ts
    from fleet.content_checksum(v_table, v_columns, p_checksum_version) s;
    v_hash := fleet.rows_hash(v_table);
  end if;

  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s has no table to archive', p_partition),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if p_row_count is distinct from row_count or coalesce(p_columns, v_columns) <> v_columns then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s has %s rows, but %s says that it copied %s; nothing is archived',
        p_partition, row_count, p_worker, coalesce(p_row_count::text, 'nothing')
      ),
      detail = format('columns of the table: %s; columns copied: %s', v_columns, coalesce(p_columns, v_columns)),
      hint = format(
        'The table was changed while it was copied, or the archiver cannot be trusted. Hold the partition while you look: '
        'select fleet.hold_partition(%L, ''why'');', p_partition
      );
  end if;
  if min_ts < v_partition.range_start or max_ts >= v_partition.range_end then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s covers %s to %s, but its rows range from %s to %s',
        p_partition, v_partition.range_start, v_partition.range_end, min_ts, max_ts
      ),
      hint = format(
        'The table was changed after it was retired. Hold the partition while you look: '
        'select fleet.hold_partition(%L, ''why'');', p_partition
      );
  end if;
  update fleet.hb_partitions p
  set counted = jsonb_build_object(
    'row_count', count_retired.row_count, 'content_checksum', count_retired.content_checksum::text,
    'min_ts', count_retired.min_ts, 'max_ts', count_retired.max_ts, 'columns', v_columns, 'checksum_version', p_checksum_version,
    'rows_hash', v_hash::text
  )
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.count_retired(text, text, bigint, jsonb, integer) is
  'Archiving: counts the rows of a retired table and computes their checksum, with the owner''s rights. Compares the result '
  'with what the archiver says that it copied, then records and returns it. Later proofs and the drop are compared with this.';
--! EndIncluded archive/count_retired.sql
--! Included archive/drop_restoring.sql
create or replace function fleet.drop_restoring(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('drop table if exists fleet.%I', fleet.restoring_name(p_partition));
end
$$;

comment on function fleet.drop_restoring(text) is
  'Drops the table that an unfinished restore has filled so far, if there is one. Its rows are in the proven archive.';
--! EndIncluded archive/drop_restoring.sql
--! Included archive/fail_restore.sql
create or replace function fleet.fail_restore(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  update fleet.restore_items
  set state = case when v_partition.state = 'dropped' then 'failed' else 'done' end,
    finished_at = now(), last_error = case when v_partition.state = 'dropped' then p_error end,
    lease_owner = null, lease_until = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  if not found then
    return;
  end if;
  perform fleet.drop_restoring(p_partition);
  if v_partition.state = 'dropped' then
    perform fleet.record_event('partition.restore.failed', p_partition, p_detail => p_error, p_is_ok => false);
  end if;
end
$$;

comment on function fleet.fail_restore(text, text, text) is
  'Records that a restore failed and why, and removes the half-filled table. The archive is untouched. If the day is back by '
  'other means, the restore counts as done.';
--! EndIncluded archive/fail_restore.sql
--! Included archive/finish_restore.sql
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
  v_table regclass;
  v_got record;
  v_left_out text;
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := to_regclass(format('fleet.%I', fleet.restoring_name(p_partition)));
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

  -- The archiver may insert until here. Its rights are revoked before the comparison, so exactly the compared rows are attached.
  execute format('revoke all on %s from fleet_archiver', v_table);
  execute format('alter table %s disable row level security', v_table);
  select * into v_got from fleet.content_checksum(v_table, v_partition.columns, v_partition.checksum_version);
  if (v_got.row_count, v_got.content_checksum, v_got.min_ts, v_got.max_ts) is distinct from (
    v_partition.row_count, v_partition.content_checksum, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the restored rows of %s differ from what was archived; the table is not attached', p_partition),
      detail = format(
        'rows %s, restored %s; content checksum %s, restored %s',
        v_partition.row_count, v_got.row_count, v_partition.content_checksum, v_got.content_checksum
      ),
      hint = 'Check the archive: npm run archive -- verify';
  end if;

  v_left_out := fleet.reshape_restored(v_table, v_partition.columns, v_partition.columns_at);

  execute format('alter table %s rename to %I', v_table, p_partition);
  update fleet.hb_partitions set relid = v_table where partition_name = p_partition;
  perform fleet.bind_range(p_partition);
  perform partman.inherit_template_properties('fleet.device_heartbeats', 'fleet', p_partition);
  execute format(
    'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
    v_table, v_partition.range_start, v_partition.range_end
  );
  execute format('analyze %s', v_table);

  update fleet.hb_partitions
  set state = 'restored', step = null, restored_at = now(), bytes_size = pg_total_relation_size(v_table)
  where partition_name = p_partition;
  update fleet.restore_items
  set state = 'done', finished_at = now(), lease_owner = null, lease_until = null, last_error = null,
    left_out = v_left_out
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  perform fleet.record_event(
    'partition.restore', p_partition, v_got.row_count, p_detail => 'left out, and kept in the archive: ' || v_left_out
  );
end
$$;

comment on function fleet.finish_restore(text, text) is
  'Compares the restored rows with the archive, by the archive''s own columns. Then changes the table to today''s columns, '
  'indexes it, attaches it, and sets state restored.';
--! EndIncluded archive/finish_restore.sql
--! Included archive/map_columns.sql
create or replace function fleet.map_columns(p_columns jsonb, p_at timestamptz default null)
returns table ("position" integer, name text, type text, today_name text, today_type text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_column record;
  v_change fleet.column_changes;
  v_applied timestamptz;
  v_names text[] := array[]::text[];
  v_name text;
begin
  for v_column in
    select c.value ->> 'name' as name from jsonb_array_elements(p_columns) with ordinality c order by c.ordinality
  loop
    v_name := v_column.name;
    v_applied := null;
    for v_change in
      select c.*
      from fleet.column_changes c
      where c.change in ('renamed', 'dropped') and (p_at is null or c.changed_at > p_at)
      order by c.change_id
    loop
      -- Changes that were recorded together happened at once: two columns may have swapped their names.
      continue when v_change.name is distinct from v_name or v_change.changed_at = v_applied;
      v_name := v_change.new_name;
      v_applied := v_change.changed_at;
      exit when v_name is null;
    end loop;
    v_names := v_names || v_name;
  end loop;

  return query
    select c.ordinality::integer, c.value ->> 'name', c.value ->> 'type', t.name, t.type
    from jsonb_array_elements(p_columns) with ordinality c
    left join lateral (
      select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attname = v_names[c.ordinality]
        and a.attnum > 0 and not a.attisdropped
        -- If two columns lead to the same one, the column that already has the name wins.
        and c.ordinality = (
          select o.ordinality
          from jsonb_array_elements(p_columns) with ordinality o
          where v_names[o.ordinality] = v_names[c.ordinality]
          order by o.value ->> 'name' = v_names[c.ordinality] desc, o.ordinality
          limit 1
        )
    ) t on true
    order by c.ordinality;
end
$$;

comment on function fleet.map_columns(jsonb, timestamptz) is
  'Maps each column of an archive to its column in fleet.device_heartbeats today, following the renames since p_at (null: all '
  'known renames). Null if the column was dropped. '
  'Example: select m.* from fleet.archives a, fleet.hb_partitions p, fleet.map_columns(p.columns, p.columns_at) m where '
  'p.partition_name = a.partition_name;';
--! EndIncluded archive/map_columns.sql
--! Included archive/note_columns.sql
-- Called wherever the columns matter, so it finds renames without an event trigger: a column keeps its attnum when it is renamed.
-- A restored dump gives the columns new numbers, so after a restore only the names decide.
create or replace function fleet.note_columns() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table oid := 'fleet.device_heartbeats'::regclass;
  v_system bigint := 0;
  v_at timestamptz;
  v_is_known boolean;
  v_is_same_table boolean;
  v_count integer := 0;
begin
  if pg_is_in_recovery() then
    return 0;  -- the primary records the changes
  end if;
  -- A managed Postgres may hide the system identifier. Then the oid of the table has to be enough.
  if has_function_privilege('pg_control_system()', 'execute') then
    v_system := (select s.system_identifier from pg_control_system() s);
  end if;
  for v_attempt in 1..2 loop
    if not exists (
      with found as (
        select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type, a.attnum, v_table as relid,
          v_system as system_identifier
        from pg_attribute a
        where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped
      ),
      known as (
        select h.name, h.type, h.attnum, h.relid, h.system_identifier
        from fleet.heartbeat_columns h
      )
      (table found except table known) union all (table known except table found)
    ) then
      return 0;
    end if;
    -- Another session may be recording the same changes, so look again once it has finished.
    lock table fleet.heartbeat_columns in share row exclusive mode;
  end loop;

  v_at := clock_timestamp();
  select count(*) > 0, bool_and(h.relid = v_table and h.system_identifier = v_system) into v_is_known, v_is_same_table
  from fleet.heartbeat_columns h;
  if v_is_known then
    with now_columns as (
      select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type,
        case when v_is_same_table then a.attnum::text else a.attname::text end as key
      from pg_attribute a
      where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped
    ),
    known as (
      select h.name, h.type, case when v_is_same_table then h.attnum::text else h.name end as key
      from fleet.heartbeat_columns h
    ),
    pairs as (
      select k.name as old_name, k.type as old_type, n.name as new_name, n.type as new_type
      from known k
      full join now_columns n using (key)
    )
    insert into fleet.column_changes (changed_at, change, name, new_name, type, new_type)
    select v_at, c.change, coalesce(p.old_name, p.new_name), case c.change when 'renamed' then p.new_name end,
      p.old_type, p.new_type
    from pairs p
    cross join lateral (
      select 'added' as change where p.old_name is null
      union all
      select 'dropped' where p.new_name is null
      union all
      select 'renamed' where p.old_name <> p.new_name
      union all
      select 'retyped' where p.old_type <> p.new_type
    ) c
    order by c.change, coalesce(p.old_name, p.new_name);
    get diagnostics v_count = row_count;
  end if;
  delete from fleet.heartbeat_columns;
  insert into fleet.heartbeat_columns (name, type, attnum, relid, system_identifier)
  select a.attname, format_type(a.atttypid, a.atttypmod), a.attnum, v_table, v_system
  from pg_attribute a
  where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped;

  perform fleet.record_event(
    'columns.change',
    p_detail => string_agg(
      concat_ws(
        ' ', c.change, c.name,
        case c.change
          when 'renamed' then 'to ' || c.new_name
          when 'retyped' then 'to ' || c.new_type
          else coalesce(c.new_type, c.type)
        end
      ),
      ', ' order by c.change_id
    )
  )
  from fleet.column_changes c
  where c.changed_at = v_at
  having count(*) > 0;
  return v_count;
end
$$;

comment on function fleet.note_columns() is
  'Compares the columns of fleet.device_heartbeats with those recorded last, and records in fleet.column_changes which were '
  'added, dropped, renamed or retyped. Returns how many. Called by fleet.maintain() and before a partition is retired or '
  'restored. '
  'Example: select fleet.note_columns(); select * from fleet.column_changes;';
--! EndIncluded archive/note_columns.sql
--! Included archive/record_columns.sql
-- Archives from before 0.2 have their columns only in the manifest.
create or replace function fleet.record_columns(
  p_partition text,
  p_checksum_sha256 text,
  p_columns jsonb,
  p_checksum_version integer,
  p_manifest_format integer
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_is_in_recovery() then
    return false;
  end if;
  perform fleet.require_forms(p_partition, p_columns);
  update fleet.hb_partitions
  set columns = p_columns, checksum_version = p_checksum_version, manifest_format = p_manifest_format
  where partition_name = p_partition and columns is null and checksum_sha256 = p_checksum_sha256 and proven_at is not null;
  return found;
end
$$;

comment on function fleet.record_columns(text, text, jsonb, integer, integer) is
  'Records the columns of a proven archive from before 0.2, which the archiver reads from its manifest. Returns false if they '
  'are already known.';
--! EndIncluded archive/record_columns.sql
--! Included archive/record_export.sql
create or replace function fleet.record_export(p_partition text, p_worker text) returns void
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
  if v_partition.counted is null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s has not been counted yet, so its export cannot be recorded', p_partition),
      hint = 'Call fleet.count_retired() first.';
  end if;
  update fleet.hb_partitions p
  set step = 'exported', row_count = (p.counted ->> 'row_count')::bigint,
    content_checksum = (p.counted ->> 'content_checksum')::numeric,
    min_ts = (p.counted ->> 'min_ts')::timestamptz, max_ts = (p.counted ->> 'max_ts')::timestamptz,
    checksum_sha256 = null, archive_url = null, archive_bytes = null, proven_at = null,
    columns = p.counted -> 'columns', columns_at = coalesce(p.detached_at, clock_timestamp()),
    checksum_version = (p.counted ->> 'checksum_version')::smallint, manifest_format = null,
    rows_hash = (p.counted ->> 'rows_hash')::numeric, counted = null
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.record_export(text, text) is
  'Archiving, step exported: from here on the archive has to match what fleet.count_retired() counted. What was recorded of an '
  'earlier archive of the day is cleared.';
--! EndIncluded archive/record_export.sql
--! Included archive/record_failure.sql
create or replace function fleet.record_failure(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_max_attempts integer;
begin
  select archive_max_attempts into strict v_max_attempts from fleet.settings;
  update fleet.hb_partitions
  set state = case state when 'archiving' then 'archive_failed' else state end,
    -- An archive that failed its proof is made again from the rows.
    step = case state when 'archiving' then null else step end,
    attempts = attempts + 1,
    -- After 1, 2, 4, ... minutes. When all attempts are used up, fleet.nightly() makes the partition due again.
    next_attempt_at = case
      when attempts + 1 < v_max_attempts then now() + least(interval '1 minute' * (2 ^ least(attempts, 10)), interval '1 hour')
    end,
    last_error = p_error,
    lease_owner = null,
    -- If it is archived but could not be dropped, the lease keeps others away for the same time.
    lease_until = case state
      when 'archived' then now() + least(interval '1 minute' * (2 ^ least(attempts, 10)), interval '1 hour')
    end
  where partition_name = p_partition and lease_owner = p_worker and state in ('archiving', 'archived');
  if not found then
    return;
  end if;
  perform fleet.increment_counter('archive_failures_total');
  perform fleet.record_event('partition.archive.failed', p_partition, p_detail => p_error, p_is_ok => false);
end
$$;

comment on function fleet.record_failure(text, text, text) is
  'Records that archiving failed, why, and when to try again. The partition itself is kept.';
--! EndIncluded archive/record_failure.sql
--! Included archive/record_frozen.sql
create or replace function fleet.record_frozen(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- This takes seconds for a large day that fleet.nightly() has not rolled up. It happens before the partition's row is locked,
  -- so that the archiver can renew its lease meanwhile.
  perform fleet.finish_rollups(p_partition);
  perform fleet.check_lease(p_partition, p_worker);
  update fleet.hb_partitions
  set step = 'frozen'
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_frozen(text, text) is
  'Archiving, step frozen: the archiver has run VACUUM (FREEZE) if it may. Rolls up the availability of the partition''s days.';
--! EndIncluded archive/record_frozen.sql
--! Included archive/record_proof.sql
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
      message = format('partition %s is at step %s; it has to be uploaded before it is proven', p_partition, v_partition.step),
      hint = 'Call fleet.record_upload() first.';
  end if;
  if (p_checksum_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.content_checksum, v_partition.row_count, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the archive of %s, read back, differs from its rows; the partition is kept', p_partition),
      detail = format(
        'sha256 %s, read back %s; content checksum %s, read back %s; rows %s, read back %s; from %s to %s, read back %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256, v_partition.content_checksum, p_content_checksum,
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = 'The next attempt exports and uploads it again. If this happens again, check the object store.';
  end if;
  update fleet.hb_partitions
  set step = 'proven', state = 'archived', proven_at = now(), archived_at = now(), attempts = 0, next_attempt_at = null,
    confirmed_at = null, confirmed_by = null,
    last_error = null
  where partition_name = p_partition;
  perform fleet.increment_counter('partitions_archived_total');
  perform fleet.increment_counter('hb_partition_archived_total');
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
  'Archiving, step proven: compares what was read back from the store with what was exported. Sets state archived only if '
  'everything is equal.';
--! EndIncluded archive/record_proof.sql
--! Included archive/record_upload.sql
create or replace function fleet.record_upload(
  p_partition text,
  p_worker text,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_manifest_format integer default 1,
  p_checksum_version integer default null
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
      message = format('partition %s is at step %s; it has to be exported before it is uploaded', p_partition, v_partition.step),
      hint = 'Call fleet.record_export() first.';
  end if;
  update fleet.hb_partitions
  set step = 'uploaded', archive_url = p_archive_url, checksum_sha256 = p_checksum_sha256, archive_bytes = p_archive_bytes,
    manifest_format = p_manifest_format, checksum_version = coalesce(p_checksum_version, checksum_version)
  where partition_name = p_partition;
  perform fleet.increment_counter('archive_bytes_pushed_total', p_archive_bytes);
end
$$;

comment on function fleet.record_upload(text, text, text, text, bigint, integer, integer) is
  'Archiving, step uploaded: records where the Parquet file is, its SHA-256 and size, and the format of its manifest.';
--! EndIncluded archive/record_upload.sql
--! Included archive/register_archive.sql
-- For a new database that takes over archives whose own database was lost.
create or replace function fleet.register_archive(
  p_partition text,
  p_range_start timestamptz,
  p_range_end timestamptz,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_columns jsonb default null,
  p_columns_at timestamptz default null,
  p_checksum_version integer default 1,
  p_manifest_format integer default 1
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known fleet.hb_partitions;
  v_table regclass;
  v_has_rows boolean := false;
begin
  perform fleet.check_archive_place(p_range_start, p_range_end, p_archive_url);
  perform fleet.require_forms(p_partition, p_columns);
  perform fleet.note_columns();
  select * into v_known
  from fleet.hb_partitions p
  where (p.range_start < p_range_end and p.range_end > p_range_start) or p.partition_name = p_partition
  order by p.partition_name = p_partition desc
  limit 1
  for update;
  if v_known.checksum_sha256 = p_checksum_sha256 and v_known.archive_url = p_archive_url then
    return false;
  end if;

  -- A new database has empty partitions for the days within its retention.
  if v_known.partition_name = p_partition and v_known.state = 'active' and fleet.table_of(v_known) is not null
    and p_range_end <= now()
    and (v_known.range_start, v_known.range_end) = (p_range_start, p_range_end) then
    v_table := fleet.table_of(v_known);
    -- Takes the same lock as LOCK TABLE, which would require the right to write.
    execute format('alter table %s disable row level security', v_table);
    execute format('select exists (select from %s)', v_table) into v_has_rows;
    if not v_has_rows then
      update fleet.hb_partitions set is_proven_empty = true where partition_name = p_partition;
      execute format('drop table %s', v_table);
      update fleet.hb_partitions
      set state = 'dropped', relid = null, dropped_at = now(), bytes_size = 0, row_count = 0
      where partition_name = p_partition
      returning * into v_known;
    end if;
  end if;

  if v_known.partition_name is not null and not (
    v_known.partition_name = p_partition and v_known.state = 'dropped' and v_known.row_count = 0
  ) then
    raise exception using
      errcode = 'FL409',
      message = format(
        'the archive of %s is not registered: the database has partition %s, which is %s%s',
        p_partition, v_known.partition_name, v_known.state, case when v_has_rows then ' and holds rows' else '' end
      ),
      hint = format('See select * from fleet.partition_health where partition_name = %L;', v_known.partition_name);
  end if;

  insert into fleet.hb_partitions (
    partition_name, range_start, range_end, state, step, row_count, bytes_size, min_ts, max_ts, checksum_sha256, content_checksum,
    archive_url, archive_bytes, archived_at, proven_at, dropped_at, columns, columns_at, checksum_version, manifest_format
  ) values (
    p_partition, p_range_start, p_range_end, 'dropped', 'proven', p_row_count, 0, p_min_ts, p_max_ts, p_checksum_sha256,
    p_content_checksum, p_archive_url, p_archive_bytes, now(), now(), now(), p_columns, p_columns_at, p_checksum_version,
    p_manifest_format
  )
  on conflict (partition_name) do update
    set state = excluded.state, step = excluded.step, row_count = excluded.row_count, min_ts = excluded.min_ts,
      max_ts = excluded.max_ts, checksum_sha256 = excluded.checksum_sha256, content_checksum = excluded.content_checksum,
      archive_url = excluded.archive_url, archive_bytes = excluded.archive_bytes, archived_at = excluded.archived_at,
      proven_at = excluded.proven_at, is_proven_empty = false, last_error = null,
      columns = excluded.columns, columns_at = excluded.columns_at, checksum_version = excluded.checksum_version,
      manifest_format = excluded.manifest_format;
  perform fleet.record_event('partition.register', p_partition, p_row_count, p_detail => p_archive_url);
  return true;
end
$$;

comment on function fleet.register_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
) is
  'Registers an archive in a database that did not write it, after the archiver has read it back and proven it. Returns false '
  'if it was already registered. Used by: npm run archive -- register.';
--! EndIncluded archive/register_archive.sql
--! Included archive/release_lease.sql
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
  'Gives a partition back, with the steps that were finished. An archiver calls it when it is stopped.';
--! EndIncluded archive/release_lease.sql
--! Included archive/renew_lease.sql
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
  'Extends an archiver''s lease. Returns false if the archiver no longer holds it.';
--! EndIncluded archive/renew_lease.sql
--! Included archive/renew_restore_lease.sql
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
  'Extends an archiver''s lease on a restore. Returns false if the archiver no longer holds it.';
--! EndIncluded archive/renew_restore_lease.sql
--! Included archive/request_restore.sql
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
      hint = 'Give a first and a last day, in order: select fleet.request_restore(current_date - 100, current_date - 98);';
  end if;
  if not exists (
    select from fleet.hb_partitions p
    where p.state = 'dropped' and p.range_start < (v_to + 1)::timestamptz and p.range_end > p_from::timestamptz
  ) then
    raise exception using
      errcode = 'FL404',
      message = format('there is nothing to restore from %s to %s: no day in this range is only in the archive', p_from, v_to),
      hint = 'Days that are online or not yet dropped need no restore. See where each day is: select * from fleet.data_coverage;';
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
  'Asks the archiver to bring archived days back online, and returns the number of the request. Follow it in '
  'fleet.restore_items. '
  'Example: select fleet.request_restore(day) from fleet.data_coverage where "where" = ''archived'' order by day desc limit 1;';
--! EndIncluded archive/request_restore.sql
--! Included archive/require_forms.sql
create or replace function fleet.require_forms(p_partition text, p_columns jsonb) returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  select string_agg(format('%s %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality) into v_unknown
  from jsonb_array_elements(p_columns) with ordinality c
  where c.value ->> 'name' is null or fleet.archive_form(c.value ->> 'type') is null;
  if v_unknown is not null or jsonb_array_length(p_columns) = 0 then
    raise exception using
      errcode = 'FL422',
      message = format(
        'the archive of %s has %s', p_partition, coalesce('columns of unknown types: ' || v_unknown, 'no columns')
      ),
      hint = 'A newer version of this software may have written it. The known types are in sql/archive/archive_form.sql '
        'and archiver/archive/parquet.ts.';
  end if;
end
$$;

comment on function fleet.require_forms(text, jsonb) is
  'Raises an error if a column of an archive has a type without an archive form; see fleet.archive_form().';
--! EndIncluded archive/require_forms.sql
--! Included archive/reshape_restored.sql
-- Works on the staging table only. If anything fails here, the parent table was not touched.
create or replace function fleet.reshape_restored(p_table regclass, p_columns jsonb, p_at timestamptz) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  v_left_out text;
  v_column record;
  v_changed bigint;
begin
  perform fleet.note_columns();

  select string_agg(format('%s (%s)', m.name, m.type), ', ' order by m.position) into v_left_out
  from fleet.map_columns(p_columns, p_at) m
  where m.today_name is null;
  for v_column in select m.name from fleet.map_columns(p_columns, p_at) m where m.today_name is null loop
    execute format('alter table %s drop column %I', p_table, v_column.name);
  end loop;

  -- Goes through temporary names, because two columns may have swapped theirs.
  for v_column in
    select m.name, format('restoring_%s', m.position) as between_name, m.today_name
    from fleet.map_columns(p_columns, p_at) m
    where m.today_name <> m.name
  loop
    execute format('alter table %s rename column %I to %I', p_table, v_column.name, v_column.between_name);
  end loop;
  for v_column in
    select format('restoring_%s', m.position) as between_name, m.today_name
    from fleet.map_columns(p_columns, p_at) m
    where m.today_name <> m.name
  loop
    execute format('alter table %s rename column %I to %I', p_table, v_column.between_name, v_column.today_name);
  end loop;

  for v_column in
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as is_not_null,
      pg_get_expr(d.adbin, d.adrelid) as default_value, col_description(a.attrelid, a.attnum) as comment,
      case when c.oid is not null then format('collate %I.%I', c.collnamespace::regnamespace, c.collname) end as collation,
      case when s.attnum is not null then format_type(s.atttypid, s.atttypmod) end as archived_type,
      (s.atttypid, s.atttypmod, s.attcollation) is distinct from (a.atttypid, a.atttypmod, a.attcollation) as is_other
    from pg_attribute a
    left join pg_attribute s on s.attrelid = p_table and s.attname = a.attname and s.attnum > 0 and not s.attisdropped
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    left join pg_collation c on c.oid = a.attcollation and c.collname <> 'default'
    where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
    order by a.attnum
  loop
    begin
      if v_column.archived_type is null then
        -- Rows that are older than the column have no value for it, so the default is used only if the column must not be null.
        execute format(
          'alter table %s add column %I %s %s %s', p_table, v_column.name, v_column.type, v_column.collation,
          case when v_column.is_not_null then concat_ws(' ', 'default ' || v_column.default_value, 'not null') end
        );
      elsif v_column.is_other then
        execute format(
          'select count(*) from %s where %I is distinct from %2$I::%s::%s',
          p_table, v_column.name, v_column.type, v_column.archived_type
        ) into v_changed;
        if v_changed > 0 then
          raise exception using message = format('%s values would change', v_changed);
        end if;
        execute format(
          'alter table %s alter column %I type %s %s using %2$I::%3$s', p_table, v_column.name, v_column.type, v_column.collation
        );
      end if;
      if v_column.default_value is not null then
        execute format('alter table %s alter column %I set default %s', p_table, v_column.name, v_column.default_value);
      end if;
      if v_column.is_not_null then
        execute format('alter table %s alter column %I set not null', p_table, v_column.name);
      end if;
      if v_column.comment is not null then
        execute format('comment on column %s.%I is %L', p_table, v_column.name, v_column.comment);
      end if;
    exception
      when data_exception or integrity_constraint_violation or syntax_error_or_access_rule_violation or raise_exception then
      raise exception using
        errcode = 'FL010',
        message = format(
          'column %s: the archive has %s, the table has %s%s, and the values cannot be converted (%s); nothing is attached',
          v_column.name, coalesce(v_column.archived_type, 'no such column'), v_column.type,
          case when v_column.is_not_null then ' not null' else '' end, sqlerrm
        ),
        hint = case
          when v_column.archived_type is null then
            format('Give it a default: alter table fleet.device_heartbeats alter column %I set default …;', v_column.name)
          else 'The archive is complete. Read it with npm run archive -- query, or change the column back.'
        end;
    end;
  end loop;
  return v_left_out;
end
$$;

comment on function fleet.reshape_restored(regclass, jsonb, timestamptz) is
  'Changes a proven restored table from the columns of its archive to those of fleet.device_heartbeats today. Returns the '
  'columns that were left out, or null. Raises an error that names the column if a value would change.';
--! EndIncluded archive/reshape_restored.sql
--! Included archive/retry_archive.sql
create or replace function fleet.retry_archive(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_found record;
begin
  -- This takes many seconds for a large day, so it happens before the partition's row is locked.
  select * into v_found
  from fleet.hb_partitions p
  cross join lateral fleet.compare_with_archive(p.partition_name)
  where p.partition_name = p_partition and p.state = 'archived';
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state in ('active', 'restored') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; there is no failed archive to retry', p_partition, v_partition.state),
      hint = format('To archive it: select fleet.archive_partition(%L);', p_partition);
  end if;
  if v_partition.state = 'archived' and v_found.differs then
    -- As with a restored day, what is known about the archive is kept until the next export.
    update fleet.hb_partitions
    set state = 'detached', step = null, attempts = 0, next_attempt_at = now(), last_error = null,
      lease_owner = null, lease_until = null
    where partition_name = p_partition;
    perform fleet.record_event(
      'partition.archive.again', p_partition, v_found.row_count,
      p_detail => format('by %s: the table differs from its archive, which has %s rows', session_user, v_partition.row_count)
    );
    perform pg_notify('fleet_archiver', p_partition);
    return format('partition %s differs from its archive and is waiting for the archiver', p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is already %s', p_partition, v_partition.state);
  end if;
  update fleet.hb_partitions
  set attempts = 0, next_attempt_at = now()
  where partition_name = p_partition and state = 'archive_failed';
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s is waiting for the archiver', p_partition);
end
$$;

comment on function fleet.retry_archive(text) is
  'Makes the archiver retry a failed partition at once, or archive a partition again whose table was changed after its proof. '
  'Example: select fleet.retry_archive(partition_name) from fleet.partition_health where state = ''archive_failed'';';
--! EndIncluded archive/retry_archive.sql
--! Included archive/retry_failed_archives.sql
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
  'Makes partitions due again whose attempts were used up, and returns how many. Called by fleet.nightly().';
--! EndIncluded archive/retry_failed_archives.sql
--! Included archive/rows_hash.sql
-- Measured over 1,000,000 rows: this takes 0.2 s, fleet.content_checksum() 1.5 s, because its text has to be the same in DuckDB.
-- Compare this hash only within one cluster: another version of Postgres may hash differently.
create or replace function fleet.rows_hash(p_table regclass) returns numeric
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hash numeric;
begin
  execute format('select coalesce(sum(hash_record_extended(t, 0)), 0) from only %s t', p_table) into v_hash;
  return v_hash;
end
$$;

comment on function fleet.rows_hash(regclass) is
  'A sum of 64-bit hashes of the rows of a retired table. Before the drop, it shows quickly that nothing has changed since '
  'fleet.count_retired().';
--! EndIncluded archive/rows_hash.sql
--! Included archive/take_index_lock.sql
create or replace function fleet.take_index_lock() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10s'
as $$
begin
  -- A session lock: it is released when the connection ends.
  perform pg_advisory_lock(hashtext('fleet.archive_index'));
end
$$;

comment on function fleet.take_index_lock() is
  'Takes the lock of the archive''s index.json for this session, and waits for it at most 10 s. Runs with the owner''s rights, '
  'because only the owner may take advisory locks.';
--! EndIncluded archive/take_index_lock.sql
--! Included archive/unarchivable_columns.sql
create or replace function fleet.unarchivable_columns(p_table regclass) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(
    concat(a.attname, ' ', format_type(a.atttypid, a.atttypmod), case when a.attgenerated <> '' then ' (generated)' end),
    ', ' order by a.attnum
  )
  from pg_attribute a
  where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    -- COPY neither reads nor writes a generated column.
    and (a.attgenerated <> '' or fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is null);
$$;

comment on function fleet.unarchivable_columns(regclass) is
  'Lists the columns of a table, with their types, for which there is no archive form. Null if there are none. '
  'Example: select fleet.unarchivable_columns(''fleet.device_heartbeats'');';
--! EndIncluded archive/unarchivable_columns.sql
--! Included archive/wake_archiver.sql
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
  'Notifies the archiver if there is work for it, and returns whether there is. Run by pg_cron every ten minutes.';
--! EndIncluded archive/wake_archiver.sql
--! Included partitions/table_of.sql
-- relid is trusted only if the catalog agrees, because in a restored dump it is the oid of something else. The cheap cases come
-- first, because views call this for each partition.
create or replace function fleet.table_of(p fleet.hb_partitions) returns oid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_class record;
  v_schema name;
  v_table oid;
begin
  -- An attached partition has only the table whose oid was recorded, and a dropped one has none.
  if p.relid is null and p.state in ('active', 'restored', 'dropped') then
    return null;
  end if;
  select c.oid, c.relname, c.relispartition,
    c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached')) as is_ours
  into v_class
  from pg_class c
  where c.oid = p.relid and c.relkind = 'r';
  if found and v_class.relname = p.partition_name and v_class.is_ours then
    return v_class.oid;
  end if;
  -- Renamed or moved by hand.
  if v_class.relispartition and fleet.has_bounds(v_class.oid, p.range_start, p.range_end) then
    return v_class.oid;
  end if;
  if v_class.oid is not null and p.relid_seal = fleet_guard.seal(p.relid) then
    return v_class.oid;
  end if;
  foreach v_schema in array
    case when p.state in ('active', 'restored') then array['fleet', 'fleet_detached'] else array['fleet_detached', 'fleet'] end
  loop
    select c.oid into v_table
    from pg_class c
    where c.relnamespace = to_regnamespace(v_schema) and c.relname = p.partition_name and c.relkind = 'r'
      and (not c.relispartition or fleet.has_bounds(c.oid, p.range_start, p.range_end))
      and exists (
        select from pg_attribute a where a.attrelid = c.oid and a.attname = 'ts' and a.atttypid = 'timestamptz'::regtype
      );
    if found then
      return v_table;
    end if;
  end loop;
  if p.state in ('active', 'restored') and p.relid_seal is distinct from fleet_guard.seal(p.relid) then
    -- Renamed by hand before a dump.
    select a.relid into v_table
    from fleet.attached_partitions() a
    where (a.range_start, a.range_end) = (p.range_start, p.range_end);
    return v_table;
  end if;
  return null;
end
$$;

comment on function fleet.table_of(fleet.hb_partitions) is
  'The oid of a partition''s table, attached or retired, or null. Use it instead of fleet.hb_partitions.relid, which is the oid '
  'of something else after a dump was restored; the table is then found by name. '
  'Example: select p.partition_name, fleet.table_of(p)::regclass from fleet.hb_partitions p;';
--! EndIncluded partitions/table_of.sql
--! Included partitions/find_day_table.sql
create or replace function fleet.find_day_table(p_day date) returns regclass
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.oid::regclass
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where p.range_start <= p_day and p.range_end > p_day;
$$;

comment on function fleet.find_day_table(date) is
  'The table that has the heartbeats of this day, attached or retired; null if there is none.';
--! EndIncluded partitions/find_day_table.sql
--! Included availability/availability_of_day.sql
-- Availability is counted only here, so a day that is rolled up and one that is not cannot differ. The function is stable, so it
-- reads with the snapshot of the calling statement: a rebuild counts exactly the rows whose late arrivals it deletes.
create or replace function fleet.availability_of_day(
  p_day date,
  p_now timestamptz default now(),
  p_device_ids bigint[] default null
) returns setof fleet.device_availability_daily
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set work_mem = '64MB'
as $$
declare
  v_table regclass := fleet.find_day_table(p_day);
begin
  perform fleet.not_in_future(p_now);
  if v_table is null then
    return;
  end if;
  -- Planned for each call: a few devices are read through the index, all devices in one pass.
  return query execute format(
    $query$
      with roster as materialized (
        select d.device_id, i.heartbeat_interval, (extract(epoch from i.heartbeat_interval) * 1000000)::bigint as interval_us,
          greatest(d.enrolled_at, $1) as since, least(d.revoked_at, $2) as until
        from fleet.devices d
        left join fleet.cohorts c on c.cohort = d.cohort
        left join fleet.device_availability_daily a on a.device_id = d.device_id and a.day = $3
        -- The interval that was asked of the device on that day: a later change does not rewrite history.
        cross join lateral (
          select coalesce(a.heartbeat_interval, greatest(d.heartbeat_interval, c.min_interval)) as heartbeat_interval
        ) i
        where ($4 is null or d.device_id = any ($4))
          and greatest(d.enrolled_at, $1) < least(d.revoked_at, $2)
      ),
      silences as (
        select b.device_id, b.ts, r.heartbeat_interval, r.interval_us,
          b.ts - lag(b.ts, 1, r.since) over (partition by b.device_id order by b.ts) as silence
        from roster r
        join %s b on b.device_id = r.device_id and b.ts >= r.since and b.ts < r.until
        where b.ts >= $1 and b.ts < $2
      ),
      heard as (
        select s.device_id, count(*) as beats, max(s.silence) as longest, min(s.ts) as first_ts, max(s.ts) as last_ts,
          -- round(silence / interval) - 1, half up. Most silences are within the interval and miss none: they are not divided.
          sum((2 * round(date_part('epoch', s.silence) * 1000000)::bigint + s.interval_us) / (2 * s.interval_us) - 1)
            filter (where s.silence > s.heartbeat_interval) as missed
        from silences s
        group by s.device_id
      )
      select r.device_id, $3, e.expected::integer,
        least(coalesce(h.beats, 0), greatest(e.expected - coalesce(h.missed, 0) - e.missed_last, 0))::integer,
        coalesce(h.beats, 0)::integer, r.heartbeat_interval, greatest(h.longest, e.silence), h.first_ts, h.last_ts, now()
      from roster r
      left join heard h on h.device_id = r.device_id
      cross join lateral (
        select l.silence,
          round(date_part('epoch', r.until - r.since) * 1000000)::bigint / r.interval_us as expected,
          greatest((2 * round(date_part('epoch', l.silence) * 1000000)::bigint + r.interval_us) / (2 * r.interval_us) - 1, 0)
            as missed_last
        from (select r.until - coalesce(h.last_ts, r.since) as silence) l
      ) e
    $query$,
    v_table
  )
  using p_day::timestamptz, least((p_day + 1)::timestamptz, p_now), p_day, p_device_ids;
end
$$;

comment on function fleet.availability_of_day(date, timestamptz, bigint[]) is
  'Counts the availability of devices on one UTC day from its heartbeats. Returns no row if the heartbeats are no longer in the '
  'database. Used by fleet.roll_up() and fleet.device_availability(). '
  'Example: select * from fleet.availability_of_day(current_date, now(), array[42]);';
--! EndIncluded availability/availability_of_day.sql
--! Included availability/beats_missed.sql
create or replace function fleet.beats_missed(p_silence interval, p_expected interval) returns bigint
language sql
immutable
parallel safe
-- round(silence / expected) - 1, half up, in whole microseconds.
return greatest(
  (2 * (extract(epoch from p_silence) * 1000000)::bigint + (extract(epoch from p_expected) * 1000000)::bigint)
    / (2 * (extract(epoch from p_expected) * 1000000)::bigint) - 1,
  0
);

comment on function fleet.beats_missed(interval, interval) is
  'How many heartbeats are missing in a silence of this length, at this interval. A heartbeat is missing once it is more than '
  'half an interval overdue, so jitter costs nothing. '
  'Example: select fleet.beats_missed(''10 min'', ''60 s'');';
--! EndIncluded availability/beats_missed.sql
--! Included availability/device_availability.sql
create or replace function fleet.device_availability(
  p_from date,
  p_to date,
  p_device_id bigint default null,
  p_now timestamptz default now()
) returns table (
  device_id bigint, alias text, cohort text, expected bigint, seen bigint, availability_pct numeric, longest_gap interval,
  first_ts timestamptz, last_ts timestamptz, unknown_days integer
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set work_mem = '64MB'
-- The same statement serves one device and all devices, and these need different plans.
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  c_raw_days_most constant integer := 7;  -- a day of 14 million heartbeats takes seconds, and a reader has 30
  v_today date := p_now::date;
  v_since timestamptz;
  v_until timestamptz;
  v_raw_days date[];
begin
  perform fleet.not_in_future(p_now);
  if p_now is null or p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_from > p_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot compute availability from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give the first and the last day, in order: '
        'select * from fleet.device_availability(current_date - 30, current_date - 1);';
  end if;
  v_since := p_from::timestamptz;
  v_until := least((p_to + 1)::timestamptz, p_now);

  v_raw_days := array(
    select g.day::date
    from fleet.hb_partitions p
    join pg_class t on t.oid = fleet.table_of(p)
    cross join lateral generate_series(
      greatest(p.range_start, v_since), least(p.range_end, v_until) - interval '1 microsecond', interval '1 day'
    ) as g (day)
    where g.day >= (select min(d.enrolled_at)::date from fleet.devices d)
      and (g.day::date = v_today or not exists (select from fleet.rolled_up_days r where r.day = g.day::date))
  );
  if cardinality(v_raw_days) > c_raw_days_most and p_device_id is null then
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s days from %s to %s are not rolled up yet, so all their heartbeats would be read; at most %s such days are allowed',
        cardinality(v_raw_days), p_from, p_to, c_raw_days_most
      ),
      hint = 'Roll them up now: call fleet.nightly(); or wait for the night, or ask for fewer days or for one device.';
  end if;

  return query
    with roster as materialized (
      select d.device_id, d.alias, d.cohort, greatest(d.enrolled_at, v_since) as since, least(d.revoked_at, v_until) as until
      from fleet.devices d
      where (p_device_id is null or d.device_id = p_device_id)
        and greatest(d.enrolled_at, v_since) < least(d.revoked_at, v_until)
    ),
    late as materialized (
      select distinct l.device_id, l.day
      from fleet.late_arrivals l
      where l.day between p_from and p_to and l.day <> all (v_raw_days)
        and (p_device_id is null or l.device_id = p_device_id)
    ),
    days as (
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from fleet.device_availability_daily a
      where a.day between p_from and least(p_to, v_today - 1) and a.day <> all (v_raw_days)
        and (p_device_id is null or a.device_id = p_device_id)
        and not exists (select from late l where l.device_id = a.device_id and l.day = a.day)
      union all
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from unnest(v_raw_days) as r (day)
      cross join lateral fleet.availability_of_day(
        r.day, p_now, case when p_device_id is not null then array[p_device_id] end
      ) a
      union all
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from (select l.day, array_agg(l.device_id) as device_ids from late l group by l.day) l
      cross join lateral fleet.availability_of_day(l.day, p_now, l.device_ids) a
    ),
    runs as (  -- known days without an unknown day between them
      select d.*, d.day - (row_number() over (partition by d.device_id order by d.day))::integer as run
      from days d
    ),
    joined as (
      select u.*, r.alias, r.cohort, r.since, r.until,
        -- A silence does not end at midnight: it lasts from the last heartbeat of earlier days to the first of this day.
        coalesce(u.first_ts, least((u.day + 1)::timestamptz, r.until))
          - coalesce(max(u.last_ts) over w, greatest(coalesce(min(u.day) over w, u.day)::timestamptz, r.since)) as silence
      from runs u
      join roster r using (device_id)
      window w as (partition by u.device_id, u.run order by u.day rows between unbounded preceding and 1 preceding)
    ),
    known as (
      select j.device_id, sum(j.expected)::bigint as expected, sum(j.seen)::bigint as seen,
        max(greatest(j.longest_gap, j.silence)) as longest_gap, min(j.first_ts) as first_ts, max(j.last_ts) as last_ts,
        count(*)::integer as days
      from joined j
      group by j.device_id
    )
    select r.device_id, r.alias, r.cohort, coalesce(k.expected, 0), coalesce(k.seen, 0),
      round(100.0 * k.seen / nullif(k.expected, 0), 2), k.longest_gap, k.first_ts, k.last_ts,
      (r.until - interval '1 microsecond')::date - r.since::date + 1 - coalesce(k.days, 0)
    from roster r
    left join known k using (device_id)
    order by r.device_id;
end
$$;

comment on function fleet.device_availability(date, date, bigint, timestamptz) is
  'Availability of each device (or one) from the first to the last UTC day, both included: heartbeats expected and seen, the '
  'percentage (null if none was expected), and the longest silence. Rolled-up days come from the rollups. Today, days not '
  'rolled up yet, and late arrivals are counted from the heartbeats. Days with neither a rollup nor heartbeats are not counted; '
  'unknown_days is their number. '
  'Example: select alias, availability_pct, longest_gap from fleet.device_availability(current_date - 30, current_date - 1) '
  'order by availability_pct;';
--! EndIncluded availability/device_availability.sql
--! Included availability/device_availability.view.sql
create or replace view fleet.device_availability as
select a.day, a.device_id, d.alias, d.cohort, a.heartbeat_interval, a.expected, a.seen,
  round(100.0 * a.seen / nullif(a.expected, 0), 2) as availability_pct,
  a.beats, a.longest_gap, a.first_ts, a.last_ts, a.rolled_up_at
from fleet.device_availability_daily a
join fleet.devices d using (device_id);

comment on view fleet.device_availability is
  'Each device on each past UTC day on which it was expected, as the nightly rollup counted it: heartbeats expected and seen, '
  'and the longest silence. Filter by a day or a range of days. For today, or for a total over several days, use '
  'fleet.device_availability(from, to). '
  'Example: select alias, availability_pct, longest_gap from fleet.device_availability where day = current_date - 1 order by '
  'availability_pct;';
--! EndIncluded availability/device_availability.view.sql
--! Included availability/finish_rollups.sql
-- Nobody can write to a retired partition, so what is counted here is final.
create or replace function fleet.finish_rollups(p_partition text) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now timestamptz;
  v_due record;
  v_count integer := 0;
begin
  select greatest(now(), p.range_end) into v_now
  from fleet.hb_partitions p
  where p.partition_name = p_partition;
  for v_due in
    select r.day, r.action
    from fleet.rollup_plan(v_now) r
    where r.partition_name = p_partition
    order by r.day
  loop
    v_count := v_count + fleet.roll_up(v_due.day, v_now, v_due.action = 'rebuild');
  end loop;
  return v_count;
end
$$;

comment on function fleet.finish_rollups(text) is
  'Rolls up the days of a retired partition that are not rolled up yet, and counts its late arrivals. Does nothing if '
  'everything is up to date. Called before the partition is exported, and before it is dropped.';
--! EndIncluded availability/finish_rollups.sql
--! Included status/expected_interval.sql
-- No SET clause, and a body that is parsed at creation, so that views inline it. Times are subtracted from each other. An
-- interval is never added to a time, because twice a year the length of a day would then depend on the session's TimeZone.
create or replace function fleet.expected_interval(
  p_own interval,
  p_min interval,
  p_last interval,
  p_changed_at timestamptz,
  p_now timestamptz
) returns interval
language sql
immutable
parallel safe
return greatest(
  p_own,
  p_min,
  -- When a cohort is no longer slowed, its devices learn that from their next answers. Until then they keep the old interval.
  case when p_now - p_changed_at < 2 * p_last then p_last end
);

comment on function fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz) is
  'How often a heartbeat is expected from a device at this time, by devices.heartbeat_interval and its row of cohorts '
  '(min_interval, last_interval, changed_at; nulls if it has none). It is the longer of the device''s own interval and the '
  'cohort''s. For two old intervals after a change, the old interval counts if it is longer. '
  'Example: select fleet.expected_interval(''60 s'', ''5 min'', null, null, now());';
--! EndIncluded status/expected_interval.sql
--! Included availability/is_ingest_down.sql
-- Only devices that were heard from in the day before count: devices that are off for good would make any pause look long.
create or replace function fleet.is_ingest_down(p_newest timestamptz, p_now timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select case
    when p_now - p_newest > (select s.ingest_gap from fleet.settings s) then (
      select coalesce(sum(
        extract(epoch from p_now - p_newest)
        / extract(epoch from fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now))
      ), 0) >= 20
      from fleet.devices d
      join fleet.device_last_status ls using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      where d.revoked_at is null and ls.last_received_at > p_newest - interval '1 day'
    )
    else false
  end;
$$;

comment on function fleet.is_ingest_down(timestamptz, timestamptz) is
  'Whether nothing has come in from any device for so long that the fault must be ours: for longer than settings.ingest_gap, '
  'and at least 20 heartbeats were due in that time. Takes the newest received_at, and the time to judge by.';
--! EndIncluded availability/is_ingest_down.sql
--! Included status/late_after.sql
create or replace function fleet.late_after(p_expected interval) returns interval
language sql
immutable
parallel safe
return 1.5 * p_expected + interval '15 seconds';

comment on function fleet.late_after(interval) is
  'The silence after which a device is late: one interval, half an interval for jitter (agents send every 60 s ± 15 s), and 15 '
  'seconds for transport. '
  'Example: select fleet.late_after(''60 s'');';
--! EndIncluded status/late_after.sql
--! Included status/derive_status.sql
-- Written so that the views inline it; see fleet.expected_interval().
create or replace function fleet.derive_status(
  p_is_skewed boolean,
  p_last_ts timestamptz,
  p_expected interval,
  p_offline_after interval,
  p_now timestamptz
) returns text
language sql
immutable
parallel safe
return case
  when p_is_skewed then 'clock_skewed'
  when p_last_ts is null then 'new'
  -- Never less than two intervals, because one lost heartbeat is no outage.
  when p_now - p_last_ts > greatest(p_offline_after, 2 * p_expected) then 'offline'
  when p_now - p_last_ts > fleet.late_after(p_expected) then 'late'
  else 'online'
end;

comment on function fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz) is
  'The status of a device at this time: clock_skewed (its newest heartbeat was refused for its ts), new (none yet), offline '
  '(silent for longer than settings.offline_after and than two expected intervals), late (silent for longer than '
  'fleet.late_after()), or online. '
  'Example: select fleet.derive_status(false, now() - interval ''3 min'', ''60 s'', ''10 min'', now());';
--! EndIncluded status/derive_status.sql
--! Included status/device_state.view.sql
-- The setting is a subquery. If fleet.settings were joined, the planner would take its one row for hundreds, and all later
-- estimates would be wrong too.
create or replace view fleet.device_state as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    ls.status = 'clock_skewed', ls.last_ts, i.expected, (select s.offline_after from fleet.settings s), now()
  ) as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_ts)::bigint as seconds_since,
  ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at,
  ls.is_silent, ls.status as said, i.expected as expected_interval
from fleet.devices d
left join fleet.device_last_status ls using (device_id)
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
where d.revoked_at is null;

comment on view fleet.device_state is
  'fleet.device_status plus the columns that indexes cover: is_silent (the mark of devices that may be offline) and said (the '
  'stored status). Also has the interval by which status is judged. Used by the other views and fleet.list_devices().';
--! EndIncluded status/device_state.view.sql
--! Included availability/missed_beats.view.sql
create or replace view fleet.missed_beats as
select h.device_id, h.alias, h.cohort, h.status, h.last_ts, h.heard_at, h.expected_interval as heartbeat_interval, m.missed_beats
from (
  select d.*, case when d.said = 'clock_skewed' then d.last_received_at else d.last_ts end as heard_at
  from fleet.device_state d
) h
cross join lateral (
  select fleet.beats_missed(now() - coalesce(h.heard_at, h.enrolled_at), h.expected_interval) as missed_beats
) m
-- The first condition is cheap, and leaves few rows for the second.
where now() - coalesce(h.heard_at, h.enrolled_at) >= 1.5 * h.expected_interval
  and m.missed_beats > 0
order by m.missed_beats desc, h.device_id;

comment on view fleet.missed_beats is
  'Devices with missing heartbeats: how many each has missed in a row until now, since its last heartbeat, or since it was '
  'enrolled if it never sent one. Most first. '
  'Example: select alias, missed_beats from fleet.missed_beats where missed_beats >= 10;';
--! EndIncluded availability/missed_beats.view.sql
--! Included availability/roll_up.sql
-- Each statement here sees what was committed before it began. So a late arrival is either deleted by the statement that counts
-- it, or it stays.
create or replace function fleet.roll_up(p_day date, p_now timestamptz default now(), p_late_only boolean default false)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_table regclass := fleet.find_day_table(p_day);
  v_writers text[];
  v_count integer;
begin
  perform fleet.not_in_future(p_now);
  if p_day is null or p_now is null or (p_day + 1)::timestamptz > p_now then
    raise exception using
      errcode = 'FL422',
      message = format('cannot roll up %s: the day has not ended', coalesce(p_day::text, 'null')),
      hint = 'Days end at midnight UTC: select fleet.roll_up(current_date - 1);';
  end if;
  if v_table is null then
    raise exception using
      errcode = 'FL002',
      message = format('the heartbeats of %s are not in the database, so the day cannot be rolled up', p_day),
      hint = format('If the day is archived, bring it back first: select fleet.request_restore(%L);', p_day);
  end if;

  -- One at a time, so that an earlier count is never written after a later one.
  perform pg_advisory_xact_lock(hashtextextended('fleet.roll_up', 0));
  if p_late_only then
    if not exists (select from fleet.rolled_up_days r where r.day = p_day) then
      return 0;
    end if;
  else
    -- A heartbeat that was inserted before the end of its day is no late arrival, and may not be committed yet. So wait for the
    -- transactions that are writing to the table. They are watched instead of locked out, so that no heartbeat waits.
    v_writers := array(
      select l.virtualtransaction
      from pg_locks l
      where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
    );
    for v_try in 0..100 loop
      exit when not exists (
        select from pg_locks l
        where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.virtualtransaction = any (v_writers)
      );
      if v_try = 100 then
        raise exception using
          errcode = 'FL003',
          message = format('lock timeout: a transaction that wrote heartbeats of %s does not end', p_day),
          hint = 'Find it: select * from fleet.check_sessions(); The next night tries again.';
      end if;
      perform pg_sleep(0.02);
    end loop;
  end if;

  with late as (
    delete from fleet.late_arrivals l
    where l.day = p_day
    returning l.device_id
  ),
  counted as materialized (
    select c.*
    from fleet.availability_of_day(
      p_day, p_now, case when p_late_only then array(select distinct l.device_id from late l) end
    ) c
  ),
  written as (
    insert into fleet.device_availability_daily as a
    select c.*
    from counted c
    on conflict (device_id, day) do update
      set expected = excluded.expected,
        seen = excluded.seen,
        beats = excluded.beats,
        longest_gap = excluded.longest_gap,
        first_ts = excluded.first_ts,
        last_ts = excluded.last_ts,
        rolled_up_at = excluded.rolled_up_at
      where (a.expected, a.seen, a.beats, a.longest_gap, a.first_ts, a.last_ts)
        is distinct from (
          excluded.expected, excluded.seen, excluded.beats, excluded.longest_gap, excluded.first_ts, excluded.last_ts
        )
  ),
  gone as (
    delete from fleet.device_availability_daily a
    where a.day = p_day and not p_late_only
      and not exists (select from counted c where c.device_id = a.device_id)
  ),
  noted as (
    insert into fleet.rolled_up_days as r (day, devices)
    select p_day, count(*)
    from counted c
    where not p_late_only
    having not p_late_only
    on conflict (day) do update
      set devices = excluded.devices, rolled_up_at = excluded.rolled_up_at
  )
  select count(*) into v_count from counted;
  return v_count;
end
$$;

comment on function fleet.roll_up(date, timestamptz, boolean) is
  'Counts the availability of each device on one past UTC day from its heartbeats, stores it in '
  'fleet.device_availability_daily, and returns the number of devices. With p_late_only, counts again only the devices of a '
  'rolled-up day whose heartbeats came late. Called by fleet.nightly() and fleet.maintain(). '
  'Example: select fleet.roll_up(current_date - 1);';
--! EndIncluded availability/roll_up.sql
--! Included jobs/not_in_future.sql
-- Times decide what is old enough to leave. With a time in the future, a night would retire today and prune everything.
create or replace function fleet.not_in_future(p_now timestamptz) returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The login decides, not the current role, because functions with the owner's rights call this.
  if p_now > clock_timestamp() and not pg_has_role(session_user, 'fleet_owner', 'member') then
    raise exception using
      errcode = 'FL422',
      message = format('%s is later than now; only the owner of the store may pass a time in the future', p_now),
      hint = 'Leave the time out, so that the database''s clock is used.';
  end if;
  return p_now;
end
$$;

comment on function fleet.not_in_future(timestamptz) is
  'Returns its argument, or raises an error if it is later than now and the login is not a member of fleet_owner. Called by each '
  'function that takes a time and is granted to other roles.';
--! EndIncluded jobs/not_in_future.sql
--! Included availability/rollup_plan.sql
create or replace function fleet.rollup_plan(p_now timestamptz default now())
returns table (day date, partition_name text, state text, action text, due_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with changes as materialized (
    select c.day, sum(c.devices) as devices
    from (
      select d.enrolled_at::date as day, 1 as devices
      from fleet.devices d
      where d.revoked_at is null or d.revoked_at > d.enrolled_at
      union all
      select (d.revoked_at - interval '1 microsecond')::date + 1, -1
      from fleet.devices d
      where d.revoked_at > d.enrolled_at
    ) c
    group by c.day
  ),
  late as materialized (
    select l.day, min(l.arrived_at) as since
    from fleet.late_arrivals l
    group by l.day
  )
  select d.day, p.partition_name, p.state,
    case when r.day is not null and r.devices = n.devices then 'rebuild' else 'roll_up' end,
    case when r.devices = n.devices or n.devices = 0 then l.since else (d.day + 1)::timestamptz end
  from fleet.hb_partitions p
  join pg_class t on t.oid = fleet.table_of(p)
  cross join (select i.* from fleet.settings i where fleet.not_in_future(p_now) is not null) s
  cross join lateral (
    select g.day::date as day
    from generate_series(p.range_start, least(p.range_end, p_now) - interval '1 day', interval '1 day') as g (day)
  ) d
  cross join lateral (select coalesce(sum(c.devices), 0) as devices from changes c where c.day <= d.day) n
  left join fleet.rolled_up_days r on r.day = d.day
  left join late l on l.day = d.day
  where
    -- Not rolled up yet, or rolled up before its roster changed, for example by devices enrolled with an earlier date.
    d.day >= p_now - greatest(s.rollups_keep, s.retention) and coalesce(r.devices, 0) <> n.devices
    -- Also a day without a roster: heartbeats from before their device was enrolled must not wait forever.
    or l.day is not null
  order by d.day;
$$;

comment on function fleet.rollup_plan(timestamptz) is
  'Lists the past days to roll up, and those to rebuild because of late arrivals, and since when each is due. '
  'Example: select * from fleet.rollup_plan();';
--! EndIncluded availability/rollup_plan.sql
--! Included checks/check.sql
-- The themes, the most important first. If one of them fails with an error, the others still report what they found.
create or replace function fleet.check(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_theme text;
begin
  perform fleet.not_in_future(p_now);
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_silence($1)', 'check_scheduler($1)', 'check_archive($1)',
    'check_columns()', 'check_sessions($1)', 'check_storage($1)', 'check_imports($1)', 'check_settings()'
  ] loop
    begin
      return query execute 'select * from fleet.' || v_theme using p_now;
    exception when others then
      check_name := split_part(v_theme, '(', 1);
      status := 'fail';
      detail := 'the check itself failed: ' || sqlerrm;
      remedy := format(e'-- shows the whole error\nselect * from fleet.%I();', check_name);
      return next;
    end;
  end loop;
end
$$;

comment on function fleet.check(timestamptz) is
  'One row for each thing that can go wrong: ok, warn or fail, with the commands that fix it, one on each line. They are SQL, to '
  'be run as fleet_dba unless the first line says "-- as superuser" or "-- as fleet_owner", or shell commands if it says "# in a '
  'shell". Reads the heartbeats of a few devices only. Example: select * from fleet.check() where status <> ''ok'';';
--! EndIncluded checks/check.sql
--! Included checks/check_archive.sql
create or replace function fleet.check_archive(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_age interval;
  v_silence interval;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  select p_now - max(a.last_seen_at) into v_silence from fleet.archivers a;

  check_name := 'archive_failed';
  select string_agg(format('%s: %s', p.partition_name, p.last_error), '; ' order by p.range_start),
    string_agg(format('select fleet.retry_archive(%L);', p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  where p.state = 'archive_failed';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'none');
  remedy := e'-- once the cause is fixed\n' || v_commands;
  return next;

  check_name := 'archive_backlog';
  select count(*), p_now - min(p.detached_at) into v_count, v_age
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving') and p.held_reason is null;
  status := case
    when v_count = 0 or v_age < interval '6 hours' then 'ok'
    when v_age < interval '2 days' then 'warn'
    else 'fail'
  end;
  detail := format('%s partitions are waiting%s', v_count, ', the oldest for ' || date_trunc('second', v_age));
  remedy := case
    when status = 'ok' then null
    when v_silence < interval '5 minutes' then 'select fleet.wake_archiver();'
    else e'# in a shell\nnpm run archiver -- --once'
  end;
  return next;

  check_name := 'archive_undropped';
  select string_agg(p.partition_name || coalesce(': ' || p.last_error, ''), ', ' order by p.range_start),
    string_agg(
      case
        -- Only a person can say which of the two is right.
        when p.last_error like '%differs from its archive%' then format(
          e'-- if the table is right:\nselect fleet.retry_archive(%1$L);\n'
            '-- if the archive is right:\n-- select fleet.accept_archive(%1$L, ''why'');',
          p.partition_name
        )
        else format('select fleet.drop_partition(%L);', p.partition_name)
      end, e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and (v_settings.proofs_needed = 1 or p.confirmed_at is not null)
    and p.proven_at + v_settings.archive_grace
      < p_now - case when p.last_error like '%differs from its archive%' then interval '0' else interval '6 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('archived but not dropped: ' || v_names, 'no archived partition is overdue to be dropped');
  remedy := v_commands;
  return next;

  check_name := 'archive_unconfirmed';
  select string_agg(p.partition_name, ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and v_settings.proofs_needed > 1 and p.confirmed_at is null
    and p.proven_at < p_now - interval '1 day';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(
    'archived but not confirmed by a second login: ' || v_names, 'no archive is waiting for a second login to confirm it'
  );
  remedy := case when v_names is not null then e'# in a shell, with VERIFIER_DATABASE_URL\nnpm run archive -- confirm' end;
  return next;

  check_name := 'archiver';
  status := case when v_silence < interval '5 minutes' then 'ok' when v_silence is null then 'warn' else 'fail' end;
  detail := coalesce('last seen ' || date_trunc('second', v_silence) || ' ago', 'never seen');
  remedy := case when status <> 'ok' then e'# in a shell; it keeps running\nnpm run archiver' end;
  return next;

  check_name := 'restores';
  select string_agg(format('%s: %s', i.partition_name, i.last_error), '; ' order by p.range_start),
    string_agg(
      format('select fleet.request_restore(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date),
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.restore_items i
  join fleet.hb_partitions p using (partition_name)
  where i.state = 'failed' and i.finished_at > p_now - interval '1 day'
    and not exists (
      select from fleet.restore_items l where l.partition_name = i.partition_name and l.request_id > i.request_id
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('failed: ' || v_names, 'none failed in the last day');
  remedy := e'-- once the cause is fixed; npm run archive -- verify shows it\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_archive(timestamptz) is
  'The part of fleet.check() about the archive: failures, backlog, the archiver and restores.';
--! EndIncluded checks/check_archive.sql
--! Included checks/check_columns.sql
create or replace function fleet.check_columns() returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_unknown text := fleet.unarchivable_columns('fleet.device_heartbeats');
begin
  check_name := 'archive_columns';
  if v_unknown is not null then
    status := 'fail';
    detail := format('the archive has no form for %s: days with this column can be neither archived nor dropped', v_unknown);
    remedy := (
      select e'-- as fleet_owner; this may rewrite every partition, and heartbeats wait until it is done\n' || string_agg(
        case
          -- A virtual column (PostgreSQL 18) has no stored values, and its expression cannot be dropped.
          when a.attgenerated = 'v' then format('alter table fleet.device_heartbeats drop column %I;', a.attname)
          when a.attgenerated <> '' then format('alter table fleet.device_heartbeats alter column %I drop expression;', a.attname)
          else format('alter table fleet.device_heartbeats alter column %I type text using %1$I::text;', a.attname)
        end,
        e'\n' order by a.attnum
      )
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
        and (a.attgenerated <> '' or fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is null)
    );
  elsif not exists (select from pg_event_trigger where evtname = 'fleet_guard_columns' and evtenabled = 'A') then
    status := 'warn';
    detail := 'the event trigger fleet_guard_columns is missing or not ENABLE ALWAYS: unarchivable columns are not refused';
    remedy := case
      when exists (select from pg_event_trigger where evtname = 'fleet_guard_columns') then
        e'-- as superuser\nalter event trigger fleet_guard_columns enable always;'
      else e'# in a shell, with DATABASE_URL of a superuser\nnpm run migrate'
    end;
  else
    status := 'ok';
    detail := 'every column of fleet.device_heartbeats can be archived';
  end if;
  return next;
end
$$;

comment on function fleet.check_columns() is
  'The part of fleet.check() about the columns of fleet.device_heartbeats: whether each can be archived, and whether a column '
  'that cannot would be refused.';
--! EndIncluded checks/check_columns.sql
--! Included checks/check_imports.sql
create or replace function fleet.check_imports(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_commands text;
  v_names text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'imports';
  select string_agg(f.source || ' ' || f.fault, ', ' order by f.source), string_agg(f.command, e'\n' order by f.source)
  into v_names, v_commands
  from (
    select a.source,
      case
        when c.oid is null then 'is gone'
        when cardinality(a.steps) > 0 then 'stopped' || coalesce(': ' || a.last_error, '')
        else format('has been %s since %s', a.state, a.started_at::date)
      end as fault,
      case
        when c.oid is null then format('select fleet.forget_import(%L);', a.source)
        when a.state = 'moving' then format('call fleet.import_table(%L);', a.source)
        when a.state = 'abandoning' then format('call fleet.abandon_import(%L);', a.source)
        when a.state = 'moved' then format('call fleet.verify_import(%L);', a.source)
        else format('select fleet.confirm_import(%L);', a.source)
      end as command
    from fleet.imports a
    left join pg_class c on c.oid = fleet.source_table(a)
    where a.state in ('moving', 'moved', 'verified', 'abandoning')
      and (
        c.oid is null
        or cardinality(a.steps) > 0 and not exists (select from fleet.lock_holders('import') h where h = a.backend)
        -- No partition is retired while an import is open.
        or a.started_at < p_now - interval '30 days'
      )
  ) f;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'no import has stopped or been open for 30 days');
  remedy := v_commands;
  return next;

  check_name := 'import_forwards';
  select string_agg(distinct f.fault, ', '), string_agg(distinct format('call fleet.import_table(%L);', f.source), e'\n')
  into v_names, v_commands
  from (
    select a.source, e.detail as fault
    from fleet.imports a
    join fleet.events e on e.event = 'import.forward' and starts_with(e.detail, a.source || ': ')
      and e.at > p_now - interval '1 hour' and e.at > coalesce(a.moved_at, a.started_at)
    where a.state in ('moving', 'moved', 'verified')
    union all
    select a.source, format('the trigger fleet_forward on %s is missing or disabled, so new rows are not forwarded', a.source)
    from fleet.imports a
    join pg_class c on c.oid = fleet.source_table(a)
    where a.state in ('moving', 'moved', 'verified') and a.forwards and not 'forward' = any (a.steps)
      and not exists (
        select from pg_trigger g where g.tgrelid = c.oid and g.tgname = 'fleet_forward' and g.tgenabled in ('O', 'A')
      )
  ) f;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'what is written into tables that are being imported reaches the store');
  remedy := v_commands;
  return next;
end
$$;

comment on function fleet.check_imports(timestamptz) is
  'The part of fleet.check() about plain tables that are being imported: imports that stopped or stay open for long, and '
  'triggers that fail.';
--! EndIncluded checks/check_imports.sql
--! Included checks/check_ingest.sql
create or replace function fleet.check_ingest(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  c_sample constant integer := 100;
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_total bigint;
  v_start bigint;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;

  check_name := 'triggers';
  -- What the migrations made has to be there; whatever else is disabled on the store's tables is named as well.
  select string_agg(distinct format('%s on %s', f.name, f.relation), ', '),
    concat_ws(
      e'\n',
      case when bool_or(f.is_internal) then '-- as superuser' else '-- as fleet_owner' end,
      string_agg(distinct f.command, e'\n'),
      -- While they were off, last status was not kept, the guard learned nothing, and token changes were not recorded.
      case when bool_or(f.name = 'device_heartbeats_record_last_status') then 'select fleet.backfill_last_status(1);' end,
      case
        when bool_or(f.name = 'hb_partitions_protect') then 'update fleet.hb_partitions set partition_name = partition_name;'
      end,
      case when bool_or(f.name like '%\_token\_change') then '-- then restart each server: it missed changed tokens' end
    )
  into v_names, v_commands
  from (
    select r.relation, r.trigger_name as name, r.definition || ';' as command, false as is_internal
    from fleet.recorded_triggers r
    where not exists (
      select from pg_trigger g where g.tgrelid = to_regclass(r.relation) and g.tgname = r.trigger_name
    )
    union all
    select g.tgrelid::regclass::text, case when g.tgisinternal then 'a foreign key' else g.tgname::text end,
      format(
        'alter table %s enable trigger %s;',
        g.tgrelid::regclass, case when g.tgisinternal then 'all' else quote_ident(g.tgname) end
      ),
      g.tgisinternal
    from pg_trigger g
    join pg_class c on c.oid = g.tgrelid
    where c.relnamespace = 'fleet'::regnamespace and g.tgenabled not in ('O', 'A')
  ) f;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('disabled or missing: ' || v_names, 'all are on');
  remedy := case when v_names is not null then v_commands end;
  return next;

  check_name := 'last_status';
  select floor(random() * greatest(coalesce(max(d.device_id), 0) - c_sample, 0)) into v_start from fleet.devices d;
  -- One statement stores a heartbeat and updates last status, so any difference is drift.
  select count(*) filter (where ls.last_ts is null or ls.last_ts < h.ts), count(*) into v_count, v_total
  from (
    select s.device_id
    from fleet.devices s
    where s.device_id > v_start
    order by s.device_id
    limit c_sample
  ) d
  left join fleet.device_last_status ls on ls.device_id = d.device_id
  cross join lateral (
    select b.ts
    from fleet.device_heartbeats b
    where b.device_id = d.device_id and b.ts >= p_now - interval '1 day' and b.ts < p_now + interval '1 day'
    order by b.ts desc
    limit 1
  ) h;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := format('last status is behind the newest heartbeat for %s of %s devices in the sample', v_count, v_total);
  remedy := case when v_count > 0 then 'select fleet.backfill_last_status(1);' end;
  return next;

  check_name := 'quarantine';
  select sum(r.n), string_agg(format('%s %s', r.n, r.reason), ', ' order by r.reason),
    string_agg(
      case r.reason
        when 'no_partition' then format('select fleet.create_partitions(%L, %L);', r.first::date, r.last::date)
        -- Heartbeats beyond the retention are never stored.
        when 'too_late' then format(
          'update fleet.settings set max_late = %L;', least(make_interval(days => r.late_days), v_settings.retention)
        )
        else 'select device_id, max(ts - received_at) as ahead from fleet.heartbeat_quarantine '
          'where reason = ''in_future'' group by device_id order by ahead desc limit 50;'
      end,
      e'\n' order by r.reason
    )
  into v_count, v_names, v_commands
  from (
    select q.reason, count(*) as n, min(q.ts) as first, max(q.ts) as last,
      least(ceil(max(extract(epoch from q.received_at - q.ts)) / 86400), 3650)::integer as late_days
    from fleet.heartbeat_quarantine q
    where q.received_at > p_now - interval '1 hour'
    group by q.reason
  ) r;
  status := case when coalesce(v_count, 0) < 100 then 'ok' else 'warn' end;
  detail := format('%s heartbeats quarantined in the last hour', coalesce(v_names, 'no'));
  remedy := case
    when status <> 'ok' then concat_ws(
      e'\n', '-- accepts such heartbeats from now on, and stores those in quarantine', v_commands,
      'select * from fleet.replay_quarantine();'
    )
  end;
  return next;

  check_name := 'quarantine_full';
  select count(*), string_agg(f.device_id::text, ', ' order by f.device_id) filter (where f.nth <= 10) into v_count, v_names
  from (
    select d.device_id, row_number() over (order by d.device_id) as nth
    from (
      (select ls.device_id from fleet.device_last_status ls where ls.status = 'clock_skewed' limit 1000)
      union
      select q.device_id from fleet.heartbeat_quarantine q where q.received_at > p_now - interval '1 hour'
    ) d
    where (
      select count(*)
      from (
        select from fleet.heartbeat_quarantine q where q.device_id = d.device_id limit v_settings.quarantine_per_device
      ) k
    ) >= v_settings.quarantine_per_device
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case v_count
    when 0 then 'no device has reached its limit'
    else format(
      '%s devices have %s heartbeats in quarantine, and more are discarded: %s',
      v_count, v_settings.quarantine_per_device, v_names
    )
  end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- keeps more for each device; to see why they are refused: select * from fleet.heartbeat_quarantine',
      format(
        'update fleet.settings set quarantine_per_device = %s;',
        least(greatest(v_settings.quarantine_per_device, 500) * 2, 100000)
      )
    )
  end;
  return next;

  check_name := 'clocks';
  select count(*) filter (where ls.status = 'clock_skewed'), count(*) into v_count, v_total
  from fleet.device_last_status ls;
  status := case when v_count > 0 and v_count * 100 >= v_total then 'warn' else 'ok' end;
  detail := format('%s of %s devices send times that are refused', v_count, v_total);
  remedy := case
    when status <> 'ok' then e'-- set the clocks of these devices; the next heartbeat of each clears this'
      '\nselect device_id, alias, cohort, last_ts, last_received_at from fleet.device_status '
      'where status = ''clock_skewed'' order by last_received_at desc limit 50;'
  end;
  return next;
end
$$;

comment on function fleet.check_ingest(timestamptz) is
  'The part of fleet.check() about heartbeats: triggers, last status (of a sample of devices), quarantine and clocks.';
--! EndIncluded checks/check_ingest.sql
--! Included checks/check_partitions.sql
create or replace function fleet.check_partitions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_today date := p_now::date;
  v_ahead integer;
  v_names text;
  v_commands text;
  v_attach text;
  v_count bigint;
  v_catalog text := left(fleet_guard.seal(0), -1);  -- read once, not for each row
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  -- A table that was detached by hand is attached again with its rows. A new partition would be empty.
  select e'-- as fleet_owner\n' || string_agg(
    format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L);',
      c.oid::regclass, p.range_start, p.range_end
    ),
    e'\n' order by p.range_start
  )
  into v_attach
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where p.state in ('active', 'restored') and not exists (select from pg_inherits i where i.inhrelid = c.oid);

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= p_now and a.range_end > p_now) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('there is no partition for %s, so heartbeats are quarantined', v_today);
    remedy := coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today, v_today + v_settings.premake_days));
  end if;
  return next;

  check_name := 'partitions_ahead';
  select coalesce(min(d.day) - v_today - 1, 90) into v_ahead
  from (select v_today + n as day from generate_series(1, 90) as n) d
  where not exists (select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day);
  detail := format('partitions exist for the next %s days; the setting is %s', v_ahead, v_settings.premake_days);
  -- Between midnight and the hourly run there is one partition less.
  status := case when v_ahead >= greatest(v_settings.premake_days - 1, 1) then 'ok' when v_ahead >= 3 then 'warn' else 'fail' end;
  remedy := case
    when status <> 'ok' then
      coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today + 1, v_today + v_settings.premake_days))
  end;
  return next;

  check_name := 'partition_obstacles';
  select string_agg(c.relname, ', ' order by c.relname),
    string_agg(format('alter table fleet.%I rename to %I;', c.relname, left('stray_' || c.relname, 63)), e'\n' order by c.relname)
  into v_names, v_commands
  from pg_class c
  where c.relnamespace = 'fleet'::regnamespace
    and c.relkind not in ('i', 'I')
    and c.relname like 'device\_heartbeats\_p%'
    and not exists (select from pg_inherits i where i.inhrelid = c.oid)
    and c.oid <> all (array(select coalesce(fleet.table_of(p), 0) from fleet.hb_partitions p));
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('in the way of a partition of the same name: ' || v_names, 'nothing is in the way of a new partition');
  remedy := format(e'-- as superuser\n%s\ncall fleet.maintain();', v_commands);
  remedy := case when v_names is not null then remedy end;
  return next;

  check_name := 'partition_catalog';
  select string_agg(format('%s is %s', k.partition_name, k.fault), ', ' order by k.partition_name) into v_names
  from (
    select a.partition_name, 'attached but unknown to fleet.hb_partitions' as fault
    from fleet.attached_partitions() a
    where not exists (
      select from fleet.hb_partitions p
      where fleet.table_of(p) = a.relid and p.state in ('active', 'restored')
        and p.range_start = a.range_start and p.range_end = a.range_end
    )
    union all
    select p.partition_name, format('%s in fleet.hb_partitions but not attached', p.state)
    from fleet.hb_partitions p
    join pg_class c on c.oid = fleet.table_of(p)
    where p.state in ('active', 'restored')
      and not exists (select from fleet.attached_partitions() a where a.relid = c.oid)
  ) k;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'fleet.hb_partitions agrees with the catalog');
  remedy := case when v_names is not null then coalesce(v_attach, 'select fleet.sync_partitions();') end;
  return next;

  check_name := 'partition_gaps';
  select string_agg(format('%s to %s', g.gap_start::date, g.gap_end::date), ', ' order by g.gap_start),
    string_agg(
      format('select fleet.create_partitions(%L, %L);', g.gap_start::date, g.gap_end::date - 1), e'\n' order by g.gap_start
    )
  into v_names, v_commands
  from (
    select a.range_end as gap_start, lead(a.range_start) over (order by a.range_start) as gap_end
    from fleet.attached_partitions() a
  ) g
  where g.gap_end > g.gap_start
    -- The days between a held or restored day and the rest are in the archive.
    and g.gap_end > p_now - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'there is no gap between partitions');
  remedy := v_commands;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start),
    string_agg(
      case
        when p.relid_seal is distinct from v_catalog || p.relid then 'call fleet.maintain();'  -- also finds a renamed table
        when p.state in ('active', 'restored') then
          format('select fleet.create_partitions(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date)
        when p.state = 'archived' then format('select fleet.drop_partition(%L);', p.partition_name)
        else format('-- %s: only a backup of Postgres has its rows', p.partition_name)
      end,
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  left join pg_class c on c.oid = fleet.table_of(p)
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone without a proper drop: ' || v_names, 'every partition that is not dropped has its table');
  remedy := e'-- creates the days again, empty; for their heartbeats see RUNBOOK.md, "A table is gone"\n' || v_commands;
  return next;

  check_name := 'partition_oids';
  select count(*) into v_count
  from fleet.hb_partitions p
  where p.relid is not null and (p.relid_seal is distinct from v_catalog || p.relid or p.relid <> fleet.table_of(p));
  select v_count + count(*) into v_count
  from fleet.imports a
  where a.relid_seal is distinct from v_catalog || a.relid;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case v_count
    when 0 then 'every table is recorded with its oid in this cluster'
    else format(
      '%s tables are recorded with oids of another cluster, from a restored dump; until it is fixed, they are found by name',
      v_count
    )
  end;
  remedy := case when v_count > 0 then 'call fleet.maintain();' end;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start),
    string_agg(format('alter table %s rename to %I;', c.oid::regclass, p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has its original name');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it has a row', 'there is none');
  remedy := case
    when v_names is not null then format(e'-- as fleet_owner\nalter table fleet.device_heartbeats detach partition %s;', v_names)
  end;
  return next;

  check_name := 'partition_indexes';
  with fault as (
    select a.partition_name, a.range_start,
      not coalesce(bool_or(i.indisunique and i.indisvalid), false) as lacks_key,
      not coalesce(
        bool_or(i.indisvalid and not i.indisunique and pg_get_indexdef(i.indexrelid) like '%(device\_id, ts DESC)'), false
      ) as lacks_newest,
      string_agg(format('drop index concurrently %s;', i.indexrelid::regclass), e'\n')
        filter (where not i.indisvalid) as leftovers
    from fleet.attached_partitions() a
    left join pg_index i on i.indrelid = a.relid
    group by a.partition_name, a.range_start
  )
  select string_agg(f.partition_name, ', ' order by f.range_start),
    string_agg(
      concat_ws(
        e'\n',
        f.leftovers,
        -- Duplicates that were stored without the key prevent creating it.
        case when f.lacks_key then format(
          e'delete from fleet.%1$I a using fleet.%1$I b where a.device_id = b.device_id '
          'and date_bin(''10 seconds'', a.ts, ''2000-01-01Z'') = date_bin(''10 seconds'', b.ts, ''2000-01-01Z'') '
          'and (a.received_at, a.ctid) > (b.received_at, b.ctid);'
          '\ncreate unique index concurrently on fleet.%1$I %2$s;',
          f.partition_name,
          regexp_replace(pg_get_indexdef('fleet.device_heartbeats_template_dedupe_key'::regclass), '^.* USING btree ', '')
        ) end,
        case when f.lacks_newest then format(
          e'create index if not exists device_heartbeats_device_id_ts_idx on only fleet.device_heartbeats (device_id, ts desc);'
          '\ncreate index concurrently if not exists %2$I on fleet.%1$I (device_id, ts desc);'
          '\nalter index fleet.device_heartbeats_device_id_ts_idx attach partition fleet.%2$I;',
          f.partition_name, f.partition_name || '_device_id_ts_idx'
        ) end
      ),
      e'\n' order by f.range_start
    )
  into v_names, v_commands
  from fault f
  where f.lacks_key or f.lacks_newest;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('an index is missing on ' || v_names, 'every partition has both indexes');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan(null, p_now) r
  where r.action = 'retire' and r.range_end < p_now - v_settings.retention - interval '2 days';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'no partition is overdue to be retired');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'rollups';
  select string_agg(format('%s since %s', r.day, r.due_at), ', ' order by r.day),
    string_agg(distinct case r.action when 'roll_up' then 'call fleet.nightly();' else 'call fleet.maintain();' end, e'\n')
  into v_names, v_commands
  from fleet.rollup_plan(p_now) r
  where r.state in ('active', 'restored')
    and r.due_at < p_now - case r.action when 'roll_up' then interval '2 days' else interval '3 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('availability is not rolled up: ' || v_names, 'past days are rolled up, late heartbeats included');
  remedy := v_commands;
  return next;

  check_name := 'guard';
  status := 'ok'; detail := 'a partition without a proven archive cannot be dropped'; remedy := null;
  select string_agg(g.name, ', ' order by g.name),
    case
      when bool_or(e.evtname is null) then e'# in a shell, with DATABASE_URL of a superuser\nnpm run migrate'
      else e'-- as superuser\n' || string_agg(format('alter event trigger %I enable always;', g.name), e'\n' order by g.name)
    end
  into v_names, v_commands
  -- A test compares these and fleet_guard_columns, which check_columns() looks at, with what setup creates.
  from (values ('fleet_guard_drop'), ('fleet_guard_find')) as g (name)
  left join pg_event_trigger e on e.evtname = g.name
  where e.evtenabled is distinct from 'A';
  if v_names is not null then
    status := 'warn'; detail := 'event triggers that are missing or not ENABLE ALWAYS: ' || v_names; remedy := v_commands;
  end if;
  return next;
end
$$;

comment on function fleet.check_partitions(timestamptz) is
  'The part of fleet.check() about partitions: today''s, those ahead, gaps, names, indexes, retention, rollups and the guard.';
--! EndIncluded checks/check_partitions.sql
--! Included checks/check_scheduler.sql
create or replace function fleet.check_scheduler(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  c_restart constant text := format(e'# in a shell, as the user of Postgres\npg_ctl restart -m fast -D ''%s''', v_directory);
  v_has_cron boolean := exists (select from pg_extension where extname = 'pg_cron');
  v_names text;
  v_commands text;
  v_role text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'monitoring';
  status := 'ok'; detail := 'the store sees the activity of other roles'; remedy := null;
  if not pg_has_role('fleet_owner', 'pg_monitor', 'usage') or not pg_has_role('fleet_dba', 'pg_signal_backend', 'usage') then
    status := 'warn';
    detail := 'fleet_owner cannot see the activity of other roles, or fleet_dba cannot end it, so the checks of sessions and '
      'of the scheduler may be wrong';
    remedy := e'-- as superuser\ngrant pg_monitor to fleet_owner, fleet_dba;\ngrant pg_signal_backend to fleet_dba;';
  end if;
  return next;

  check_name := 'scheduler_roles';
  begin
    select string_agg(format('%s of %s', coalesce(j.jobname, 'job ' || j.jobid), j.username), ', '),
      string_agg(format('select cron.unschedule(%s);', j.jobid), e'\n')
    into v_names, v_commands
    from fleet_guard.lost_jobs() j;
  exception when undefined_function or insufficient_privilege then
    v_names := null;  -- set up before this function existed
  end;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(
    'pg_cron keeps restarting and runs no job, because the role of a job was dropped: ' || v_names, 'the role of every job exists'
  );
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'scheduler';
  status := 'ok'; detail := 'pg_cron runs'; remedy := null;
  if not v_has_cron and exists (
    select from fleet.events e
    where e.event = 'maintain.start' and e.at <= p_now
      and greatest(e.at, fleet.postgres_started_at()) >= p_now - interval '125 minutes'
  ) then
    detail := 'pg_cron is not in this database, but the hourly maintenance runs';
  elsif not v_has_cron then
    status := 'warn'; detail := 'pg_cron is not in this database, and no maintenance ran in the last two hours';
    remedy := format(
      e'-- as superuser, in database %s\n%s',
      coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'postgres, once pg_cron is there'),
      (select string_agg(j.statement, e'\n') from fleet.jobs_elsewhere() j)
    );
  elsif pg_is_in_recovery() then
    detail := 'this is a standby: the jobs run on the primary, and remedies must be run there too';
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs until Postgres is restarted'; remedy := c_restart;
  end if;
  return next;

  check_name := 'jobs';
  select string_agg(format('%s is %s%s', j.jobname, j.fault, ': ' || case j.fault when 'failed' then j.last_message end), ', '),
    string_agg(distinct
      case j.fault
        when 'missing' then 'select * from fleet.schedule_jobs();'
        when 'disabled' then format(
          'select cron.alter_job(jobid, active := true) from cron.job where jobname = %L and username = ''fleet_owner'';',
          j.jobname
        )
        else d.command || ';'
      end, e'\n'
    ),
    case
      when bool_or(j.fault = 'disabled') then e'-- as superuser\n'
      when bool_or(j.fault <> 'missing') then e'-- as fleet_owner; the next run by pg_cron clears this\n'
      else ''
    end
  into v_names, v_commands, v_role
  from (
    select h.*,
      case
        -- No job has ever run, although setup was long ago.
        when h.status = 'waiting' and bool_and(h.status = 'waiting') over ()
          and (select min(p.created_at) from fleet.hb_partitions p) < p_now - interval '3 hours' then 'late'
        else h.status
      end as fault
    from fleet.job_health h
    where v_has_cron
  ) j
  join fleet.job_definitions() d using (jobname)
  where j.fault not in ('ok', 'waiting');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(
    v_names, case when v_has_cron then 'all jobs run' else 'the history of the jobs is in the database of pg_cron' end
  );
  remedy := v_role || v_commands;
  return next;

  check_name := 'maintenance';
  select string_agg(format('%s %s: %s', e.event, e.partition_name, e.detail), '; '),
    case when bool_and(e.event = 'maintenance.premake') then 'call fleet.maintain();' else 'call fleet.nightly();' end
  into v_names, v_commands
  from (
    select distinct on (k.event, k.partition_name) k.*
    from fleet.events k
    where k.event like 'maintenance.%' and k.at > p_now - interval '25 hours'
    order by k.event, k.partition_name, k.event_id desc
  ) e
  where not e.is_ok;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'no step failed without succeeding later');
  remedy := case when v_names is not null then e'-- once the cause is fixed\n' || v_commands end;
  return next;

  check_name := 'nights';
  status := 'ok'; detail := 'fleet.nightly() began on schedule'; remedy := null;
  if fleet.is_night_missed(p_now) then
    status := 'warn'; detail := 'fleet.nightly() has not begun for 25 hours'; remedy := 'call fleet.nightly();';
  end if;
  return next;

  check_name := 'locks_of_maintenance';
  select string_agg(format('%s is held by backend %s for %s', w.name, a.pid, date_trunc('second', p_now - a.query_start)), ', '),
    string_agg(format('select * from fleet.force_unlock(%L);', w.name), e'\n')
  into v_names, v_commands
  from unnest(array['maintenance', 'reconcile']) as w (name)
  cross join fleet.lock_holders(w.name) h
  join pg_stat_activity a on a.pid = h
  where a.query_start < p_now - interval '2 hours';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'no lock is held for long');
  remedy := v_commands;
  return next;
end
$$;

comment on function fleet.check_scheduler(timestamptz) is
  'The part of fleet.check() about the scheduler: pg_cron, its jobs and roles, failed steps, missed nights and stuck locks.';
--! EndIncluded checks/check_scheduler.sql
--! Included checks/check_sessions.sql
create or replace function fleet.check_sessions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_restart text := format(
    'pg_ctl restart -m fast -D ''%s''',
    coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA')
  );
  v_faults text[];
  v_fault text;
  v_names text;
  v_commands text;
  v_max bigint := current_setting('max_connections')::bigint;
  v_used bigint;
  v_workers bigint;
  v_wanted bigint;
begin
  perform fleet.not_in_future(p_now);
  -- Sessions that block others, run for long or idle in a transaction are found and ended in the same way.
  foreach v_fault in array array['blocking', 'long_transactions', 'idle_in_transaction'] loop
    check_name := v_fault;
    select
      string_agg(
        format('backend %s (%s, %s) for %s: %s', a.pid, a.usename, a.state, a.age, left(a.query, 60)), '; ' order by a.pid
      ),
      case when bool_or(a.is_super) then e'-- as superuser\n' else '' end
      || string_agg(format('select pg_terminate_backend(%s);', a.pid), e'\n' order by a.pid)
    into v_names, v_commands
    from (
      select s.pid, s.usename, coalesce(s.state, s.backend_type) as state, s.query,
        date_trunc('second', greatest(p_now - coalesce(s.xact_start, s.query_start), '0')) as age,
        (select r.rolsuper from pg_roles r where r.oid = s.usesysid) as is_super
      from pg_stat_activity s
      where s.pid <> pg_backend_pid()
        and s.backend_type not in ('autovacuum worker', 'walsender')
        and case v_fault
          when 'long_transactions' then
            s.xact_start < p_now - interval '1 hour' and s.state is distinct from 'idle in transaction'
          when 'idle_in_transaction' then s.state like 'idle in transaction%' and s.state_change < p_now - interval '10 minutes'
          else s.pid in (
              select b.pid
              from pg_locks w
              cross join unnest(pg_blocking_pids(w.pid)) as b (pid)
              where not w.granted and w.waitstart < p_now - interval '3 seconds'
            )
            -- Only the first of a queue, because the others continue when it ends.
            and cardinality(pg_blocking_pids(s.pid)) = 0
        end
    ) a;
    status := case when v_names is null then 'ok' else 'warn' end;
    detail := coalesce(v_names, 'none');
    remedy := v_commands;
    return next;
  end loop;

  check_name := 'prepared_transactions';
  select string_agg(format('%s of %s in %s since %s', x.gid, x.owner, x.database, date_trunc('second', x.prepared)), ', '),
    e'-- as superuser' || string_agg(
      case x.database when current_database() then '' else format(e'\n-- in database %s:', x.database) end
      || format(e'\nrollback prepared %L;', x.gid), '' order by x.database <> current_database(), x.database, x.prepared
    )
  into v_names, v_commands
  from pg_prepared_xacts x
  where x.prepared < p_now - interval '10 minutes';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('still open, with its locks: ' || v_names, 'none is open for long');
  remedy := v_commands;
  return next;

  check_name := 'replication_slots';
  select string_agg(format('%s keeps %s of WAL%s', r.slot_name, pg_size_pretty(r.kept), ' and dead rows since ' || r.xmin), ', '),
    e'-- as superuser; the replica must then be rebuilt\n'
    || string_agg(format('select pg_drop_replication_slot(%L);', r.slot_name), e'\n'),
    array_agg(case when r.kept > 4::bigint << 30 then 'fail' else 'warn' end)
  into v_names, v_commands, v_faults
  from (
    select s.slot_name, coalesce(age(s.xmin), age(s.catalog_xmin))::text || ' transactions ago' as xmin,
      pg_wal_lsn_diff(
        case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, s.restart_lsn
      ) as kept
    from pg_replication_slots s
    where not s.active
  ) r
  where r.kept > 256 << 20;
  status := case when v_names is null then 'ok' when 'fail' = any (v_faults) then 'fail' else 'warn' end;
  detail := coalesce('no replica reads ' || v_names, 'no unused slot keeps WAL');
  remedy := v_commands;
  return next;

  check_name := 'connections';
  select count(*) filter (where s.backend_type = 'client backend'), count(*) filter (where s.application_name = 'nexmdm listen')
  into v_used, v_workers
  from pg_stat_activity s;
  -- Each worker has a pool (10 connections, unless POOL_MAX is set) and up to 4 more. The rest is for the archiver and people.
  v_wanted := greatest(v_workers * (10 + 4) + 50, ceil(v_used * 1.3));
  status := case when v_used >= 0.95 * v_max then 'fail' when v_used >= 0.8 * v_max or v_wanted > v_max then 'warn' else 'ok' end;
  detail := format('%s of %s connections are in use; %s server workers may need %s', v_used, v_max, v_workers, v_wanted);
  remedy := null;
  if status <> 'ok' and exists (select from pg_settings s where s.name = 'max_connections' and s.pending_restart) then
    detail := detail || '; a new limit is set and takes effect when Postgres is restarted';
    remedy := e'# in a shell, as the user of Postgres\n' || v_restart;
  elsif status <> 'ok' then
    remedy := format(
      e'-- as superuser; then restart Postgres: %s\nalter system set max_connections = %s;\nselect pg_reload_conf();',
      v_restart, greatest(v_wanted, v_max) + 50
    );
  end if;
  return next;
end
$$;

comment on function fleet.check_sessions(timestamptz) is
  'The part of fleet.check() about sessions: those that block others, long and prepared transactions, replication slots, '
  'connections.';
--! EndIncluded checks/check_sessions.sql
--! Included checks/check_settings.sql
-- The guidelines: shared_buffers about a quarter of the memory (4 GB at most, as npm start sets it), effective_cache_size half
-- to three quarters, work_mem 4 to 16 MB, autovacuum_naptime 10 s, statements slower than 250 ms in the log.
create or replace function fleet.check_settings()
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  c_restart constant text := format('pg_ctl restart -m fast -D ''%s''', v_directory);
  v_memory bigint;
  v_setting record;
begin
  begin
    v_memory := fleet_guard.memory_bytes();
  exception when undefined_function or insufficient_privilege then
    v_memory := null;  -- set up before this function existed
  end;

  for v_setting in
    select w.*, s.pending_restart, s.context = 'postmaster' as needs_restart,
      coalesce(current_setting(w.name, true), 'unknown') as shown
    from (
      select k.name, k.guideline, k.advice, s.vartype = 'bool' and s.reset_val = 'on' or k.is_good as is_good
      from pg_settings s
      cross join lateral (
        select s.reset_val::numeric as n where s.vartype = 'integer'
        union all
        select null where s.vartype <> 'integer'
      ) v
      join lateral (
        values
          ('shared_buffers', 'a quarter of the memory', format('%sMB', least(v_memory >> 22, 4096)),
            v_memory is null or v.n * 8192 >= least(v_memory / 4, 4::bigint << 30) / 2),
          ('effective_cache_size', 'half to three quarters of the memory', format('%sMB', (v_memory * 0.6)::bigint >> 20),
            v_memory is null or v.n * 8192 between v_memory * 0.4 and v_memory),
          ('work_mem', '4 to 16 MB', '8MB', v.n between 4096 and 16384),
          ('autovacuum_naptime', '10 s', '10s', v.n <= 10),
          ('log_min_duration_statement', '250 ms', '250ms', v.n between 0 and 250),
          ('autovacuum', 'on', 'on', false),
          ('fsync', 'on, or a crash loses acknowledged heartbeats', 'on', false),
          ('full_page_writes', 'on, or a crash loses acknowledged heartbeats', 'on', false)
      ) as k (name, guideline, advice, is_good) on k.name = s.name
    ) w
    join pg_settings s on s.name = w.name
    order by w.name
  loop
    check_name := 'setting_' || v_setting.name;
    status := case when v_setting.is_good then 'ok' else 'warn' end;
    detail := format('%s; the guideline is %s', v_setting.shown, v_setting.guideline);
    if v_setting.guideline like '%of the memory' then
      detail := detail || coalesce(format(' (%s)', pg_size_pretty(v_memory)), ', whose size is unknown');
    end if;
    remedy := null;
    if not v_setting.is_good and v_setting.pending_restart then
      detail := detail || '; a new value is set and takes effect when Postgres is restarted';
      remedy := e'# in a shell, as the user of Postgres\n' || c_restart;
    elsif not v_setting.is_good then
      remedy := format(
        e'-- as superuser%s\nalter system set %s = %L;\nselect pg_reload_conf();',
        case when v_setting.needs_restart then '; then restart Postgres: ' || c_restart end, v_setting.name, v_setting.advice
      );
    end if;
    return next;
  end loop;
end
$$;

comment on function fleet.check_settings() is
  'The part of fleet.check() about the settings of Postgres: compares each with its guideline and gives the value to set.';
--! EndIncluded checks/check_settings.sql
--! Included checks/check_silence.sql
create or replace function fleet.check_silence(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_newest timestamptz;
  v_names text;
  v_commands text;
  v_is_fleet boolean;
  v_muted text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'heartbeats';
  select max(ls.last_received_at) into v_newest from fleet.device_last_status ls;
  status := 'ok'; remedy := null;
  detail := coalesce('the last one arrived ' || date_trunc('second', p_now - v_newest) || ' ago', 'no heartbeat has arrived yet');
  if fleet.is_ingest_down(v_newest, p_now) then
    status := 'fail';
    detail := format(
      'no device was heard from for %s; the cause is the servers, the proxy in front of them, or the network',
      date_trunc('second', p_now - v_newest)
    );
    remedy := e'-- is a server connected? If not, start one (npm run server). If so, see RUNBOOK.md, "Heartbeats are refused"\n'
      'select usename, application_name, state, count(*) from pg_stat_activity where usename like ''fleet%'' '
      'group by 1, 2, 3 order by 1, 2, 3;';
  end if;
  return next;

  check_name := 'silent_cohorts';
  select
    string_agg(
      format(
        '%s: %s of %s devices since %s, usually %s %%',
        a.cohort, a.gone_quiet, a.active, to_char(a.window_start, 'HH24:MI'), round((100 * a.usual_share)::numeric)
      ),
      '; ' order by a.place
    ) filter (where a.is_alarming),
    string_agg(
      format(
        'select device_id, alias, last_ts, network_type, agent_version, ip from fleet.device_status '
        'where %sstatus in (''late'', ''offline'') order by last_ts desc limit 50;',
        case when a.place > 1 then format('cohort = %L and ', a.cohort) end
      ),
      e'\n' order by a.place
    ) filter (where a.is_alarming),
    bool_or(a.is_alarming and a.place = 1),
    max(a.muted_reason) filter (where a.place = 1 and a.muted_reason in ('ingest_down', 'ingest_resumed', 'unwatched'))
  into v_names, v_commands, v_is_fleet, v_muted
  from (select l.*, row_number() over () as place from fleet.silence_at(p_now) l) a;
  status := case when v_names is null then 'ok' when v_is_fleet then 'fail' else 'warn' end;
  detail := coalesce(
    'gone quiet: ' || v_names,
    format('not evaluated: %s', v_muted),
    'no more devices have gone quiet than usual'
  );
  remedy := e'-- what do these devices share: a place, a network, a version? This clears when they send again\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_silence(timestamptz) is
  'The part of fleet.check() about silence: no heartbeat from any device, and cohorts in which more devices have gone quiet than '
  'usual.';
--! EndIncluded checks/check_silence.sql
--! Included checks/check_storage.sql
create or replace function fleet.check_storage(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_dead bigint;
  v_live bigint;
  v_age bigint;
  v_limit bigint := current_setting('autovacuum_freeze_max_age')::bigint;
  v_last bigint;
  v_usual bigint;
  v_wal bigint;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;

  check_name := 'autovacuum';
  select string_agg(c.relname, ', '), string_agg(format('alter table fleet.%I reset (autovacuum_enabled);', c.relname), e'\n')
  into v_names, v_commands
  from pg_class c
  where c.reloptions
      && array['autovacuum_enabled=false', 'autovacuum_enabled=off', 'autovacuum_enabled=0', 'autovacuum_enabled=no']
    and (
      c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and not c.relispartition
      or c.oid in (select a.relid from fleet.attached_partitions() a where a.range_end > p_now)
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('switched off for ' || v_names, 'it is on for every table whose rows change');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'dead_rows';
  v_dead := pg_stat_get_dead_tuples('fleet.device_last_status'::regclass);
  v_live := pg_stat_get_live_tuples('fleet.device_last_status'::regclass);
  status := case when v_dead > 5000 + v_live then 'warn' else 'ok' end;
  detail := format('device_last_status has %s dead and %s live rows', v_dead, v_live);
  remedy := case when status <> 'ok' then e'-- as fleet_owner\nvacuum (analyze) fleet.device_last_status;' end;
  return next;

  check_name := 'partitions_vacuumed';
  -- Uses the visibility map, because a crash loses the statistics of vacuums. Small partitions do not matter.
  select string_agg(a.partition_name, ', ' order by a.range_start),
    string_agg(format('vacuum (analyze) fleet.%I;', a.partition_name), e'\n' order by a.range_start)
  into v_names, v_commands
  from fleet.attached_partitions() a
  join pg_class c on c.oid = a.relid
  where a.range_end between p_now - interval '7 days' and p_now - interval '1 day'
    and pg_relation_size(a.relid) > 1 << 20
    and c.relallvisible * current_setting('block_size')::bigint < pg_relation_size(a.relid) / 2;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('not vacuumed since their day ended: ' || v_names, 'the last days are vacuumed and analyzed');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'wraparound';
  select age(d.datfrozenxid) into v_age from pg_database d where d.datname = current_database();
  status := case when v_age > 1500000000 then 'fail' when v_age > v_limit * 1.5 then 'warn' else 'ok' end;
  detail := format(
    'the oldest row is %s transactions old; autovacuum freezes at %s, and Postgres stops at 2 billion', v_age, v_limit
  );
  if status <> 'ok' then
    select string_agg(format('vacuum (freeze) %s;', o.relid), e'\n' order by o.age desc) into v_commands
    from (
      select c.oid::regclass as relid, age(c.relfrozenxid) as age
      from pg_class c
      where c.relkind in ('r', 'm', 't') and age(c.relfrozenxid) > v_limit
      order by 2 desc
      limit 50
    ) o;
  end if;
  remedy := case when status <> 'ok' then e'-- as superuser; the oldest 50 tables. Repeat until this is ok\n' || v_commands end;
  return next;

  check_name := 'disk';
  select avg(g.bytes_online) filter (where g.day between p_now::date - 8 and p_now::date - 2),
    max(g.bytes_online) filter (where g.day = p_now::date - 1)
  into v_usual, v_last
  from fleet.storage_growth g;
  begin
    select sum(w.size) into v_wal from pg_ls_waldir() w;
  exception when insufficient_privilege then
    v_wal := null;
  end;
  -- Postgres cannot ask how much space is free on a disk.
  status := case when v_last > 1 << 30 and v_last > 2 * v_usual then 'warn' else 'ok' end;
  detail := format(
    'the database takes %s and WAL %s; yesterday''s heartbeats take %s, an average day of the week before takes %s, and a whole '
    'retention would take %s; Postgres does not know the free space',
    pg_size_pretty(pg_database_size(current_database())),
    coalesce(pg_size_pretty(v_wal), '?'),
    pg_size_pretty(coalesce(v_last, 0)), pg_size_pretty(coalesce(v_usual, 0)),
    pg_size_pretty((coalesce(greatest(v_last, v_usual), 0) * extract(epoch from v_settings.retention) / 86400)::bigint)
  );
  remedy := case
    when status <> 'ok' then format(
      e'# in a shell: is there room for the retention? If not, add disk or shorten it: select fleet.set_retention(…);\n'
        'df -h ''%s''',
      v_directory
    )
  end;
  return next;
end
$$;

comment on function fleet.check_storage(timestamptz) is
  'The part of fleet.check() about tables on disk: autovacuum, dead rows, wraparound, size and growth.';
--! EndIncluded checks/check_storage.sql
--! Included checks/record_triggers.sql
create or replace function fleet.record_triggers() returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with recorded as (
    insert into fleet.recorded_triggers as r (relation, trigger_name, definition)
    select g.tgrelid::regclass::text, g.tgname, pg_get_triggerdef(g.oid)
    from pg_trigger g
    join pg_class c on c.oid = g.tgrelid
    join pg_proc p on p.oid = g.tgfoid
    where c.relnamespace = 'fleet'::regnamespace and not c.relispartition
      and not g.tgisinternal and g.tgparentid = 0
      -- A trigger with a function from elsewhere is not the store's.
      and p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
    on conflict (relation, trigger_name) do update
      set definition = excluded.definition
      where r.definition <> excluded.definition
    returning r.trigger_name
  )
  select count(*) from recorded;
$$;

comment on function fleet.record_triggers() is
  'Records the triggers that the migrations made, so that fleet.check() misses one that was dropped; returns how many are new or '
  'changed. Called by npm run migrate.';
--! EndIncluded checks/record_triggers.sql
--! Included devices/ack_command.sql
create or replace function fleet.ack_command(p_device_id bigint, p_command_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  with acknowledged as (
    update fleet.device_commands
    set acknowledged_at = now()
    where device_id = p_device_id and command_id = p_command_id and acknowledged_at is null
    returning device_id, command_id
  )
  insert into fleet.command_dispatch_log (device_id, command_id, event)
  select a.device_id, a.command_id, 'acknowledged'
  from acknowledged a;
  if found then
    return true;
  end if;
  if not exists (select from fleet.device_commands where device_id = p_device_id and command_id = p_command_id) then
    raise exception using
      errcode = 'FL404',
      message = format('device %s has no command %s', coalesce(p_device_id::text, 'null'), coalesce(p_command_id::text, 'null')),
      hint = 'Check the command_id. Commands are deleted after settings.commands_keep.';
  end if;
  return false;
end
$$;

comment on function fleet.ack_command(bigint, bigint) is
  'Records that a device has received a command, which is then not handed over again. Returns false if it was already '
  'acknowledged. '
  'Example: select fleet.ack_command(42, 7);';
--! EndIncluded devices/ack_command.sql
--! Included devices/authenticate.sql
create or replace function fleet.authenticate(p_token_hash bytea)
returns table (
  kind text, device_id bigint, gateway_id bigint, name text, cohort text, own_interval_s integer, next_interval_s integer
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'device', d.device_id, null::bigint, d.alias, d.cohort, extract(epoch from d.heartbeat_interval)::integer,
    extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
  from fleet.devices d
  left join fleet.cohorts c on c.cohort = d.cohort
  where d.token_hash = p_token_hash and d.revoked_at is null
  union all
  select 'gateway', null, g.gateway_id, g.gateway_name, null, null, null
  from fleet.gateways g
  where g.token_hash = p_token_hash and g.revoked_at is null;
$$;

comment on function fleet.authenticate(bytea) is
  'Returns whose token has this SHA-256: a device (with its own interval, and the interval to ask for, which its cohort may '
  'lengthen) or a gateway. Returns no row if the token is unknown or revoked.';
--! EndIncluded devices/authenticate.sql
--! Included devices/create_device.sql
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
declare
  v_other bigint;
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
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias;
    raise exception using
      errcode = 'FL409',
      message = format('a device with alias %s is already enrolled', p_alias),
      hint = format(
        'If this is device %s after a reset or a reinstall, give it a new token: '
        'select fleet.renew_token(%s); or POST /admin/devices/%s/token. '
        'If it is another device, choose another alias: aliases are unique, including those of revoked devices.',
        v_other, v_other, v_other
      );
  end if;
  insert into fleet.device_last_status (device_id, is_silent)
  values (create_device.device_id, false);
end
$$;

comment on function fleet.create_device(text, text) is
  'Enrolls a device. Returns its id and its token, which is shown only now. '
  'Example: select * from fleet.create_device(''lobby-tablet-7'', ''lobby'');';
--! EndIncluded devices/create_device.sql
--! Included devices/make_token.sql
create or replace function fleet.make_token(p_prefix text) returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  -- Three version 4 UUIDs hold 366 bits from Postgres's strong random source, without an extension. SHA-256 keeps 256.
  select p_prefix || encode(
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'hex'
  );
$$;

comment on function fleet.make_token(text) is
  'Returns a new random token of 256 bits in hex, after a prefix that shows its kind.';
--! EndIncluded devices/make_token.sql
--! Included devices/create_gateway_token.sql
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
      message = format('a gateway named %s already exists', p_name),
      hint = 'Choose another name: names are unique, including those of revoked gateways.';
  end if;
  return v_token;
end
$$;

comment on function fleet.create_gateway_token(text) is
  'Creates a token that may post heartbeats for any enrolled device. It is shown only now. '
  'Example: select fleet.create_gateway_token(''warehouse-3'');';
--! EndIncluded devices/create_gateway_token.sql
--! Included devices/record_token_change.sql
create or replace function fleet.record_token_change() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.token_change_log (subject)
  select case tg_table_name when 'devices' then 'device:' || o.device_id else 'gateway:' || o.gateway_id end
  from jsonb_to_record(to_jsonb(old)) as o (device_id bigint, gateway_id bigint);
  -- One notification for all rows of the transaction: Postgres sends equal ones only once.
  notify fleet_tokens, 'changes';
  return null;
end
$$;

comment on function fleet.record_token_change() is
  'Trigger on fleet.devices and fleet.gateways: records that what servers have cached for the token is no longer valid.';
--! EndIncluded devices/record_token_change.sql
--! Included status/forget_marks.sql
create or replace function fleet.forget_marks() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.silence_marks
  set marked_at = '-infinity', changes = changes + 1;
  return null;
end
$$;

comment on function fleet.forget_marks() is
  'Trigger on fleet.devices: with different heartbeat intervals, devices are offline after different times. So the marks of '
  'fleet.mark_silent() are not used until its next run.';
--! EndIncluded status/forget_marks.sql
--! Included devices/devices.trigger.sql
create or replace trigger devices_forget_marks
  after update of heartbeat_interval on fleet.devices
  for each statement execute function fleet.forget_marks();

comment on trigger devices_forget_marks on fleet.devices is
  'A changed interval changes the time after which a device is offline.';

create or replace trigger devices_token_change
  after update of token_hash, revoked_at, cohort, heartbeat_interval or delete on fleet.devices
  for each row execute function fleet.record_token_change();

comment on trigger devices_token_change on fleet.devices is 'Tells servers to drop what they cached for this device.';
--! EndIncluded devices/devices.trigger.sql
--! Included devices/end_session.sql
create or replace function fleet.end_session(p_session bytea, p_ends_at timestamptz) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from fleet.ended_sessions
  where ends_at < now();
  -- A cookie is valid for half a day, so no session has to be remembered for longer than a day, whatever p_ends_at says.
  insert into fleet.ended_sessions (session_hash, ends_at)
  values (p_session, least(p_ends_at, now() + interval '1 day'))
  on conflict (session_hash) do nothing;
end
$$;

comment on function fleet.end_session(bytea, timestamptz) is
  'Ends a session of the ops page on every server. Takes the SHA-256 of the text in its cookie and the time at which it would '
  'expire. Called by the server at logout.';
--! EndIncluded devices/end_session.sql
--! Included devices/enroll_device.sql
create or replace function fleet.enroll_device(p_alias text, p_cohort text default 'default') returns text
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.token from fleet.create_device(p_alias, p_cohort) d;
$$;

comment on function fleet.enroll_device(text, text) is
  'Enrolls a device and returns its token, which is shown only now. '
  'Example: select fleet.enroll_device(''lobby-tablet-7'', ''lobby'');';
--! EndIncluded devices/enroll_device.sql
--! Included devices/gateways.trigger.sql
create or replace trigger gateways_token_change
  after update of token_hash, revoked_at or delete on fleet.gateways
  for each row execute function fleet.record_token_change();

comment on trigger gateways_token_change on fleet.gateways is 'Tells servers to drop what they cached for this gateway.';
--! EndIncluded devices/gateways.trigger.sql
--! Included devices/hash_token.sql
create or replace function fleet.hash_token(p_token text) returns bytea
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(p_token, 'UTF8'));
$$;

comment on function fleet.hash_token(text) is 'The SHA-256 of a token: only this is stored.';
--! EndIncluded devices/hash_token.sql
--! Included devices/is_session_ended.sql
create or replace function fleet.is_session_ended(p_session bytea) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from fleet.ended_sessions e where e.session_hash = p_session);
$$;

comment on function fleet.is_session_ended(bytea) is
  'Whether a session of the ops page was ended by a logout on any server. Takes the SHA-256 of the text in its cookie.';
--! EndIncluded devices/is_session_ended.sql
--! Included devices/known_devices.sql
create or replace function fleet.known_devices(p_device_ids bigint[])
returns table (device_id bigint, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.device_id, extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
  from fleet.devices d
  left join fleet.cohorts c on c.cohort = d.cohort
  where d.device_id = any (p_device_ids) and d.revoked_at is null;
$$;

comment on function fleet.known_devices(bigint[]) is
  'Returns those of the given devices that are enrolled and not revoked: a gateway may send heartbeats only for these.';
--! EndIncluded devices/known_devices.sql
--! Included devices/move_device.sql
create or replace function fleet.move_device(p_device_id bigint, p_cohort text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alias text;
  v_old text;
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Example: select fleet.move_device(42, ''lobby'');';
  end if;
  select d.alias, d.cohort into v_alias, v_old from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_old = p_cohort then
    return false;
  end if;
  update fleet.devices set cohort = p_cohort where device_id = p_device_id;
  perform fleet.record_event(
    'device.moved',
    p_detail => format('device %s (%s): cohort %s, was %s; by %s', p_device_id, v_alias, p_cohort, v_old, session_user)
  );
  return true;
end
$$;

comment on function fleet.move_device(bigint, text) is
  'Moves a device to another cohort. The device learns that cohort''s interval from its next answer. Returns false if it is '
  'already there. '
  'Example: select fleet.move_device(42, ''lobby'');';
--! EndIncluded devices/move_device.sql
--! Included devices/recent_tokens.sql
create or replace function fleet.recent_tokens(p_limit integer)
returns table (
  token_hash text, kind text, device_id bigint, gateway_id bigint, cohort text, own_interval_s integer, next_interval_s integer
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select encode(g.token_hash, 'base64'), 'gateway', null::bigint, g.gateway_id, null, null, null
  from fleet.gateways g
  where g.revoked_at is null
  union all
  (
    select encode(d.token_hash, 'base64'), 'device', d.device_id, null, d.cohort,
      extract(epoch from d.heartbeat_interval)::integer,
      extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
    from fleet.devices d
    left join fleet.cohorts c on c.cohort = d.cohort
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    where d.revoked_at is null
    order by ls.last_received_at desc nulls last
    limit p_limit
  )
  limit p_limit;
$$;

comment on function fleet.recent_tokens(integer) is
  'Returns what fleet.authenticate() would answer for all gateways and for the devices heard from last, so that a server need '
  'not ask for each of them after it starts. Hashes are base64.';
--! EndIncluded devices/recent_tokens.sql
--! Included devices/rename_device.sql
create or replace function fleet.rename_device(p_device_id bigint, p_alias text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old text;
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
  end if;
  select d.alias into v_old from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_old = p_alias then
    return false;
  end if;
  begin
    update fleet.devices set alias = p_alias where device_id = p_device_id;
  exception when unique_violation then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias;
    raise exception using
      errcode = 'FL409',
      message = format('device %s already has the alias %s; device %s keeps the alias %s', v_other, p_alias, p_device_id, v_old),
      hint = format(
        'Aliases are unique, including those of revoked devices. '
        'Choose another, or rename the other device first: select fleet.rename_device(%s, %L);',
        v_other, left(p_alias, 190) || ' (old)'
      );
  end;
  perform fleet.record_event(
    'device.renamed', p_detail => format('device %s: %s, was %s; by %s', p_device_id, p_alias, v_old, session_user)
  );
  return true;
end
$$;

comment on function fleet.rename_device(bigint, text) is
  'Gives a device another alias, also if it is revoked. Its token and heartbeats stay. Returns false if it already has that '
  'alias. '
  'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
--! EndIncluded devices/rename_device.sql
--! Included devices/renew_token.sql
create or replace function fleet.renew_token(p_device_id bigint) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_token('nxd_');
  v_alias text;
  v_revoked_at timestamptz;
begin
  select d.alias, d.revoked_at into v_alias, v_revoked_at from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  update fleet.devices
  set token_hash = fleet.hash_token(v_token), revoked_at = null
  where device_id = p_device_id;
  perform fleet.record_event(
    'device.token_renewed',
    p_detail => format(
      'device %s (%s) got a new token%s; by %s',
      p_device_id, v_alias,
      case
        when v_revoked_at is not null then format(', the old one had been revoked at %s', date_trunc('second', v_revoked_at))
      end,
      session_user
    )
  );
  perform pg_notify('fleet_tokens', 'device:' || p_device_id);
  return v_token;
end
$$;

comment on function fleet.renew_token(bigint) is
  'Gives a device a new token, which is shown only now. It replaces one that was lost, revoked or never known; the old one '
  'stops working within a second. '
  'Example: select fleet.renew_token(42);';
--! EndIncluded devices/renew_token.sql
--! Included devices/revoke_device.sql
create or replace function fleet.revoke_device(p_device_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alias text;
  v_revoked_at timestamptz;
begin
  select d.alias, d.revoked_at into v_alias, v_revoked_at from fleet.devices d where d.device_id = p_device_id for update;
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
  perform fleet.record_event('device.revoked', p_detail => format('device %s (%s); by %s', p_device_id, v_alias, session_user));
  perform pg_notify('fleet_tokens', 'device:' || p_device_id);
  return true;
end
$$;

comment on function fleet.revoke_device(bigint) is
  'Revokes a device''s token: servers refuse it within a second. Returns false if it was already revoked. Its heartbeats stay. '
  'Example: select fleet.revoke_device(42);';
--! EndIncluded devices/revoke_device.sql
--! Included devices/revoke_gateway.sql
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
      hint = 'Check the name. Gateways are created with fleet.create_gateway_token(name).';
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
  'Revokes a gateway''s token: servers refuse it within a second. Returns false if it was already revoked. '
  'Example: select fleet.revoke_gateway(''warehouse-3'');';
--! EndIncluded devices/revoke_gateway.sql
--! Included devices/send_command.sql
create or replace function fleet.send_command(p_device_id bigint, p_command text, p_payload jsonb default null)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_command_id bigint;
begin
  if p_command is null or btrim(p_command) = '' or length(p_command) > 64 then
    raise exception using
      errcode = 'FL422',
      message = 'command must have 1 to 64 characters',
      hint = 'Example: select fleet.send_command(42, ''restart_unity'');';
  end if;
  if octet_length(p_payload::text) > 65536 then
    raise exception using
      errcode = 'FL422',
      message = format('the payload has %s bytes; the limit is 65536', octet_length(p_payload::text)),
      hint = 'Put large data where the device can fetch it, and send the address.';
  end if;
  with sent as (
    insert into fleet.device_commands (device_id, command, payload)
    select d.device_id, p_command, nullif(p_payload, 'null')
    from fleet.devices d
    where d.device_id = p_device_id and d.revoked_at is null
    returning device_id, command_id
  ),
  logged as (
    insert into fleet.command_dispatch_log (device_id, command_id, event)
    select s.device_id, s.command_id, 'sent'
    from sent s
  )
  select s.command_id into v_command_id
  from sent s;
  if v_command_id is null then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s, or it is revoked', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  return v_command_id;
end
$$;

comment on function fleet.send_command(bigint, text, jsonb) is
  'Sends a command to a device, which gets it at its next poll. Returns the command_id. '
  'Example: select fleet.send_command(42, ''set_volume'', ''{"percent":30}'');';
--! EndIncluded devices/send_command.sql
--! Included devices/set_cohort_interval.sql
create or replace function fleet.set_cohort_interval(p_cohort text, p_interval interval) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval;
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
  end if;
  if p_interval < interval '1 second' or p_interval > interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('interval %s is not between 1 second and 1 day', p_interval),
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes''); With null the cohort is not slowed.';
  end if;
  -- Otherwise two calls at once would both see the same old value. Readers do not wait.
  lock table fleet.cohorts in share row exclusive mode;
  select min_interval into v_old from fleet.cohorts where cohort = p_cohort;
  if v_old is distinct from p_interval then
    insert into fleet.cohorts as c (cohort, min_interval)
    values (p_cohort, p_interval)
    on conflict (cohort) do update
      set min_interval = excluded.min_interval,
        last_interval = greatest(
          c.min_interval,
          case when now() - c.changed_at < 2 * c.last_interval then c.last_interval end
        ),
        changed_at = now();
    insert into fleet.settings_audit (setting, old_value, new_value)
    values ('cohort_interval:' || p_cohort, v_old, p_interval);
    perform pg_notify('fleet_tokens', 'cohort:' || p_cohort);
  end if;
  return format(
    'cohort %s: %s (was %s); it has %s devices', p_cohort,
    coalesce('at least ' || p_interval || ' between heartbeats', 'not slowed'),
    coalesce(v_old::text, 'not slowed'),
    (select count(*) from fleet.devices where cohort = p_cohort and revoked_at is null)
  );
end
$$;

comment on function fleet.set_cohort_interval(text, interval) is
  'Slows a cohort: none of its devices is asked to send more often than this. With null, each device follows its own interval '
  'again. A device learns of the change from its next answer. '
  'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
--! EndIncluded devices/set_cohort_interval.sql
--! Included devices/take_commands.sql
create or replace function fleet.take_commands(p_device_id bigint)
returns table (command_id bigint, command text, payload jsonb, created_at timestamptz)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with waiting as materialized (
    select c.command_id, c.command, c.payload, c.created_at
    from fleet.device_commands c
    cross join fleet.settings s
    where c.device_id = p_device_id
      and c.acknowledged_at is null
      and c.created_at > now() - s.command_expires_after
    order by c.command_id
    limit 100  -- keeps the answer small; the rest follows once these are acknowledged
  ),
  logged as (
    insert into fleet.command_dispatch_log (device_id, command_id, event)
    select p_device_id, w.command_id, 'handed_over'
    from waiting w
  )
  select w.command_id, w.command, w.payload, w.created_at
  from waiting w
  order by w.command_id;
$$;

comment on function fleet.take_commands(bigint) is
  'Hands a device its commands, oldest first, at most 100, and logs that. A command is handed over again until it is '
  'acknowledged, because the answer may have been lost. '
  'Example: select * from fleet.take_commands(42);';
--! EndIncluded devices/take_commands.sql
--! Included devices/token_changes.sql
create or replace function fleet.token_changes(p_since xid8 default null)
returns table (started_at timestamptz, horizon xid8, changes json, cohorts json)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    pg_postmaster_start_time(),
    -- Every transaction before this one has ended, so its changes are visible here or never. A change that is committed later
    -- belongs to this transaction or a later one, and so to the next answer.
    pg_snapshot_xmin(pg_current_snapshot()),
    coalesce(
      (
        select json_agg(json_build_array(l.change_id, l.subject))
        from fleet.token_change_log l
        where l.changed_xid >= p_since
      ),
      '[]'
    ),
    coalesce(
      (
        select json_object_agg(c.cohort, extract(epoch from c.min_interval)::integer)
        from fleet.cohorts c
        where c.min_interval is not null
      ),
      '{}'
    );
$$;

comment on function fleet.token_changes(xid8) is
  'For a server that caches tokens: returns what changed since the horizon of its last answer ([change_id, "device:7"]; some '
  'changes may be repeated), and the slowed cohorts. A different started_at means another Postgres or a restarted one, whose '
  'horizons cannot be compared. '
  'Example: select * from fleet.token_changes();';
--! EndIncluded devices/token_changes.sql
--! Included import/abandon_import.sql
create or replace procedure fleet.abandon_import(p_source regclass, inout p_state text default null)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;
  v_source := fleet.begin_abandoning(p_source);
  commit;
  call fleet.run_import(v_source, 5000, '0', p_state);
end
$$;

comment on procedure fleet.abandon_import(regclass, text) is
  'Abandons the import of a table: removes the trigger, and writes back into the table the heartbeats that the store has '
  'received since the import began and that the table does not have. What was imported stays in the store. Another call '
  'writes back what has arrived since. Example: call fleet.abandon_import(''public.device_heartbeats'');';
--! EndIncluded import/abandon_import.sql
--! Included import/begin_abandoning.sql
create or replace function fleet.begin_abandoning(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports := fleet.get_import(p_source);
  v_grants text;
  v_needed text;
begin
  if a.state = 'confirmed' then
    raise exception using
      errcode = 'FL002',
      message = format('the import of %s was confirmed at %s and can no longer be abandoned', a.source, a.confirmed_at),
      hint = format('You can copy heartbeats by hand: insert into %s select … from fleet.device_heartbeats;', a.source);
  end if;

  select string_agg(g.grant_, '; ') into v_grants
  from (
    select format('grant insert on %s to %I', a.source, current_user) as grant_
    where not has_table_privilege(p_source, 'insert')
    union all
    -- A serial column takes its default from this sequence.
    select format('grant usage on sequence %s to %I', d.objid::regclass, current_user)
    from pg_depend d
    join pg_class s on s.oid = d.objid
    where d.classid = 'pg_class'::regclass and d.refobjid = p_source and d.deptype = 'a'
      and case s.relkind when 'S' then not has_sequence_privilege(s.oid, 'usage') else false end
  ) g;
  -- A quick look at whether the store has received anything since. If not, nothing is written back and no right is needed.
  if v_grants is not null and exists (select from fleet.device_last_status ls where ls.last_received_at >= a.started_at) then
    raise exception using
      errcode = 'FL422',
      message = format('heartbeats cannot be written back into %s: role %s may not insert there', a.source, current_user),
      hint = format('As its owner: %s;', v_grants);
  end if;
  select string_agg(t.attname, ', ' order by t.attnum) into v_needed
  from pg_attribute t
  where t.attrelid = p_source and t.attnum > 0 and not t.attisdropped and t.attnotnull and not t.atthasdef and t.attidentity = ''
    and t.attname not in (select k.value from jsonb_each_text(a.columns) k where k.value is not null);
  if v_needed is not null then
    raise exception using
      errcode = 'FL422',
      message = format(
        'heartbeats cannot be written back into %s: the store has no values for its columns %s', a.source, v_needed
      ),
      hint = format(
        'As its owner, give them a default: alter table %s alter %I set default …;', a.source, split_part(v_needed, ', ', 1)
      );
  end if;

  perform fleet.take_import_lock();
  update fleet.imports f
  set state = 'abandoning', backend = pg_backend_pid(), last_error = null,
    steps = case when a.state = 'abandoning' then f.steps else '{unforward,survey,write_back}' end,
    step = case when a.state = 'abandoning' then f.step end,
    step_started_at = clock_timestamp(), step_from = f.step_done, step_rows = 0
  where f.source = a.source;
  return a.source;
end
$$;

comment on function fleet.begin_abandoning(regclass) is
  'Begins to abandon the import of a table. Called by fleet.abandon_import().';
--! EndIncluded import/begin_abandoning.sql
--! Included import/begin_import.sql
create or replace function fleet.begin_import(
  p_source regclass,
  p_columns jsonb,
  p_unknown_devices text,
  p_oldest timestamptz,
  p_forward boolean
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports;
  v_old fleet.imports;
begin
  perform fleet.take_import_lock();
  begin
    perform fleet.relink_tables();
    select f.* into v_old from fleet.imports f where f.relid = p_source;
    if v_old.state = 'abandoning' then
      raise exception using
        errcode = 'FL002',
        message = format('the import of %s is being abandoned', v_old.source),
        hint = format('Let that finish first: call fleet.abandon_import(%L);', v_old.source);
    end if;
    -- An option that is not given keeps its value from the first call.
    a := fleet.describe_source(
      p_source, coalesce(p_columns, v_old.columns), coalesce(p_unknown_devices, v_old.unknown_devices),
      coalesce(p_oldest, case when v_old.is_oldest_given then v_old.oldest end), coalesce(p_forward, v_old.forwards)
    );
  exception when others then
    perform pg_advisory_unlock(hashtextextended('fleet.import', 0));
    raise;
  end;

  -- If this oid is new, everything recorded under its name belongs to an earlier table.
  delete from fleet.import_days d where d.source = a.source and v_old.relid is null;
  delete from fleet.imports f where f.source = a.source and f.relid <> a.relid;

  if v_old.state = 'moving'
    and (v_old.columns, v_old.unknown_devices, v_old.match_by) = (a.columns, a.unknown_devices, a.match_by)
    and p_oldest is null and v_old.forwards = a.forwards
  then
    update fleet.imports f
    set step_started_at = clock_timestamp(), step_from = f.step_done, step_rows = 0, backend = pg_backend_pid(), last_error = null
    where f.relid = p_source;
    perform fleet.record_event('import.resume', p_detail => format('%s, pass %s, by %s', a.source, v_old.pass, session_user));
    return a.source;
  end if;

  insert into fleet.imports as f (
    source, relid, state, steps, pass, columns, unknown_devices, oldest, is_oldest_given, forwards, match_by, store_ip, backend
  )
  values (
    a.source, a.relid, 'moving', '{survey,enroll,partitions,forward,move}', 1, a.columns, a.unknown_devices, a.oldest,
    a.is_oldest_given, a.forwards, a.match_by, a.store_ip, pg_backend_pid()
  )
  on conflict (source) do update
    set state = excluded.state, steps = excluded.steps, pass = f.pass + 1, columns = excluded.columns,
      unknown_devices = excluded.unknown_devices, oldest = excluded.oldest, is_oldest_given = excluded.is_oldest_given,
      forwards = excluded.forwards, match_by = excluded.match_by, backend = excluded.backend,
      step = null, last_error = null, confirmed_at = null, abandoned_at = null,
      -- After confirmation or abandonment a new import begins. Until then it is the same one: abandoning it writes back
      -- everything received since its first start.
      started_at = case when f.state in ('confirmed', 'abandoned') then now() else f.started_at end,
      store_ip = case when f.state in ('confirmed', 'abandoned') then excluded.store_ip else f.store_ip end;
  perform fleet.record_event('import.start', p_detail => format('%s, by %s', a.source, session_user));
  return a.source;
end
$$;

comment on function fleet.begin_import(regclass, jsonb, text, timestamptz, boolean) is
  'Begins the import of a table, or resumes it where it stopped. Called by fleet.import_table().';
--! EndIncluded import/begin_import.sql
--! Included import/begin_import_step.sql
create or replace function fleet.begin_import_step(a fleet.imports) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := a.steps[1];
  v_blocks bigint := pg_relation_size(a.relid) / current_setting('block_size')::bigint;
begin
  if v_step = 'survey' then
    delete from fleet.import_ranges r where r.source = a.source;
    delete from fleet.import_refusals r where r.source = a.source;
    update fleet.import_days d set rows_found = 0, checked_at = null where d.source = a.source;
  elsif v_step = 'move' then
    update fleet.imports f
    set rows_read = 0, rows_stored = 0, rows_duplicate = 0, rows_refused = 0
    where f.source = a.source;
  end if;
  update fleet.imports f
  set step = v_step, filenode = pg_relation_filenode(a.relid), next_block = 0, end_block = v_blocks, batch_blocks = 16,
    next_partition = '-infinity', step_started_at = clock_timestamp(), step_from = 0, step_done = 0, step_rows = 0,
    step_total = coalesce(case v_step
      when 'survey' then v_blocks
      when 'move' then v_blocks
      when 'partitions' then (
        select max(d.day) - min(d.day) + 1 from fleet.import_days d where d.source = a.source and d.rows_found > 0
      )
      when 'verify' then (select sum(d.rows_found) from fleet.import_days d where d.source = a.source)
      when 'write_back' then (select count(*) from fleet.attached_partitions())
      else 1
    end, 0)
  where f.source = a.source;
end
$$;

comment on function fleet.begin_import_step(fleet.imports) is
  'Sets the cursor, counts and progress of an import to the start of its next step.';
--! EndIncluded import/begin_import_step.sql
--! Included import/begin_verification.sql
create or replace function fleet.begin_verification(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports := fleet.get_import(p_source);
begin
  if a.state not in ('moved', 'verified') then
    raise exception using
      errcode = 'FL002',
      message = format('%s is %s and cannot be verified', a.source, a.state),
      hint = format('Move all of its rows first: call fleet.import_table(%L);', a.source);
  end if;
  perform fleet.take_import_lock();
  update fleet.imports f
  set state = 'moved', steps = '{survey,verify}', step = null, verified_xid = pg_snapshot_xmin(pg_current_snapshot()),
    backend = pg_backend_pid(), last_error = null
  where f.source = a.source;
  return a.source;
end
$$;

comment on function fleet.begin_verification(regclass) is
  'Begins the verification of an import. Called by fleet.verify_import().';
--! EndIncluded import/begin_verification.sql
--! Included import/confirm_import.sql
-- The verification compared everything that was written before it. The rows written since are compared here, while the table is
-- locked against writers; that reads the table once, and compares no older row again.
create or replace function fleet.confirm_import(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  c_blocks constant integer := 1024;
  a fleet.imports := fleet.get_import(p_source);
  v_rows bigint;
  v_missing bigint;
  v_changed bigint;
begin
  if a.state = 'confirmed' then
    return format('the import of %s was confirmed at %s', a.source, a.confirmed_at);
  end if;
  if a.state <> 'verified' then
    raise exception using
      errcode = 'FL002',
      message = format('the import of %s is %s, not verified, and cannot be confirmed', a.source, a.state),
      hint = format('Verify it first: call fleet.verify_import(%L);', a.source);
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL422',
      message = format(
        'a %s transaction cannot see rows that are written just before the lock on %s', current_setting('transaction_isolation'),
        a.source
      ),
      hint = format('Run this in a read committed transaction of its own: select fleet.confirm_import(%L);', a.source);
  end if;

  -- Replacing the trigger takes the lock that keeps writers out. LOCK TABLE would need more rights than SELECT and TRIGGER.
  a.forwards := true;
  for v_try in 1..20 loop
    begin
      perform fleet.start_forwarding(a);
      exit;
    exception when lock_not_available then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('%s is in use: 20 attempts to lock it against writers failed', a.source),
          hint = format(
            'Nothing has changed. See who writes: select * from pg_stat_activity where query ilike %L; then try again.',
            '%' || p_source::text || '%'
          );
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;

  -- One row of each bucket is kept, as in fleet.verify_days(). More rows may be compared than were written since, because a long
  -- transaction in any database of the cluster holds back the transaction ID from which they are counted.
  execute format(
    $query$
      select coalesce(sum(b.rows), 0), coalesce(sum(b.rows) filter (where b.is_missing), 0),
        coalesce(sum(b.rows) filter (where b.is_changed and not b.is_kept), 0)
      from (
        select count(*) as rows, h.checksum is null as is_missing, bool_or(h.checksum = s.checksum) as is_kept,
          bool_or(h.ts = s.ts and h.received_at = s.received_at) as is_changed
        from (
          select b.device_id, b.ts, b.received_at, %1$s as checksum,
            date_bin('10 seconds', b.ts, timestamptz '2000-01-01 00:00:00+00') as bucket
          from (
            select (r.beat).*
            from generate_series(0, $2, $3) as g (block)
            cross join lateral fleet.read_source($1, g.block, g.block + $3, ($1).verified_xid::xid) r
            where r.reason is null
          ) b
        ) s
        left join lateral (
          select b.ts, b.received_at, %1$s as checksum
          from fleet.device_heartbeats b
          where b.device_id = s.device_id and b.ts >= s.bucket and b.ts < s.bucket + interval '10 seconds'
        ) h on true
        group by s.device_id, s.bucket, h.checksum
      ) b
    $query$,
    fleet.checksum_expression('fleet.device_heartbeats')
  )
  into v_rows, v_missing, v_changed
  using a, pg_relation_size(p_source) / current_setting('block_size')::bigint, c_blocks;
  if v_missing + v_changed > 0 then
    raise exception using
      errcode = 'FL010',
      message = format(
        'of %s rows written to %s since it was verified, %s are not in the store and %s are there with different content', v_rows,
        a.source, v_missing, v_changed
      ),
      hint = format('Import them and verify again: call fleet.import_table(%1$L); call fleet.verify_import(%1$L);', a.source);
  end if;

  for v_try in 1..20 loop
    begin
      perform fleet.stop_forwarding(a);
      exit;
    exception when lock_not_available or deadlock_detected then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('%s is being read: 20 attempts to drop its trigger failed', a.source),
          hint = format(
            'Nothing has changed. Try again when the long queries have ended: select fleet.confirm_import(%L);', a.source
          );
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;
  delete from fleet.import_ranges r where r.source = a.source;
  update fleet.imports f
  set state = 'confirmed', confirmed_at = clock_timestamp(), updated_at = clock_timestamp()
  where f.source = a.source;
  perform fleet.record_event(
    'import.confirmed', p_rows => (select sum(d.rows_kept)::bigint from fleet.import_days d where d.source = a.source),
    p_detail => format('%s, by %s', a.source, session_user)
  );
  return format(
    'the import of %1$s is confirmed; %2$s rows that were written since the verification were compared too. '
      'When you no longer need the table, run as its owner: drop table %1$s;',
    a.source, v_rows
  );
end
$$;

comment on function fleet.confirm_import(regclass) is
  'Confirms the import of a verified table: compares the rows written since the verification, with writers locked out for that '
  'moment, and removes the trigger. After that the import can no longer be abandoned. The table itself stays until you drop it. '
  'Example: select fleet.confirm_import(''public.device_heartbeats'');';
--! EndIncluded import/confirm_import.sql
--! Included import/describe_source.sql
-- Everything that can be wrong with a table is reported here, before anything is changed.
create or replace function fleet.describe_source(
  p_source regclass,
  p_columns jsonb,
  p_unknown_devices text,
  p_oldest timestamptz,
  p_forward boolean
) returns fleet.imports
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  a fleet.imports;
  v_class pg_class;
  v_schema name;
  v_fault text;
  v_hint text;
  v_target record;
  v_column text;
  v_type text;
  v_id_type text;
begin
  select * into v_class from pg_class c where c.oid = p_source;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no table %s', coalesce(p_source::text, 'null')),
      hint = 'Give the name with its schema: call fleet.import_table(''public.device_heartbeats'');';
  end if;
  v_schema := (select n.nspname from pg_namespace n where n.oid = v_class.relnamespace);
  a.source := format('%I.%I', v_schema, v_class.relname);
  a.relid := v_class.oid;
  a.store_ip := (select s.store_ip from fleet.settings s);
  a.unknown_devices := coalesce(p_unknown_devices, 'refuse');
  a.forwards := coalesce(p_forward, true);
  a.is_oldest_given := p_oldest is not null;
  a.oldest := coalesce(p_oldest, now() - interval '3650 days');

  v_fault := case
    when v_schema in ('fleet', 'fleet_detached', 'fleet_guard', 'partman', 'cron', 'pg_catalog', 'information_schema') then
      'it belongs to the store or to Postgres itself'
    when v_class.relkind = 'p' then 'it is partitioned'
    when v_class.relkind = 'f' then 'it is a foreign table'
    when v_class.relkind in ('v', 'm') then 'it is a view'
    when v_class.relkind <> 'r' then 'it is not a table'
    when v_class.relpersistence = 't' then 'it is a temporary table, which other sessions cannot see'
    when v_class.relispartition then 'it is a partition of another table'
    when exists (select from pg_inherits i where p_source in (i.inhrelid, i.inhparent)) then
      'it inherits from a table, or a table inherits from it'
    when v_class.relrowsecurity then 'its row-level security may hide rows'
  end;
  if v_fault is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be imported: %s', a.source, v_fault),
      hint = case
        when v_class.relrowsecurity then format('As its owner: alter table %s disable row level security;', a.source)
        else 'Only a plain table can be imported. Copy the rows into one: create table public.device_heartbeats as select …;'
      end;
  end if;

  select string_agg(r.grant_, '; '), string_agg(r.right_, ', ')
  into v_hint, v_fault
  from (
    select format('grant usage on schema %I to %I', v_schema, current_user) as grant_,
      'USAGE on its schema' as right_
    where not has_schema_privilege(v_class.relnamespace, 'usage')
    union all
    select format('grant select, trigger on %s to %I', a.source, current_user), 'SELECT and TRIGGER on it'
    where not (has_table_privilege(p_source, 'select') and has_table_privilege(p_source, 'trigger'))
  ) r;
  if v_fault is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be imported: role %s lacks %s', a.source, current_user, v_fault),
      hint = format('As its owner: %s;', v_hint);
  end if;

  select string_agg(k.key, ', ') into v_fault
  from jsonb_object_keys(case jsonb_typeof(p_columns) when 'object' then p_columns else '{}' end) as k (key)
  where k.key not in (select c.name from fleet.archive_columns('fleet.device_heartbeats') c);
  if v_fault is not null or jsonb_typeof(p_columns) <> 'object' then
    raise exception using
      errcode = 'FL422',
      message = case
        when v_fault is null then format('the columns of %s must be given as a JSON object, not as %s', a.source, p_columns)
        else format('fleet.device_heartbeats has no column %s that could be filled from %s', v_fault, a.source)
      end,
      hint = 'For a column of fleet.device_heartbeats, give the column of your table, or null for none: '
        'p_columns => ''{"battery_pct": "battery", "ip": null}''.';
  end if;

  a.columns := '{}';
  for v_target in select c.name, c.type from fleet.archive_columns('fleet.device_heartbeats') c order by c.position loop
    v_column := case when p_columns ? v_target.name then p_columns ->> v_target.name else v_target.name end;
    select format_type(t.atttypid, t.atttypmod) into v_type
    from pg_attribute t
    where t.attrelid = p_source and t.attname = v_column and t.attnum > 0 and not t.attisdropped;
    if not found and (v_target.name in ('ts', 'device_id') or p_columns ->> v_target.name is not null) then
      raise exception using
        errcode = 'FL422',
        message = case
          when v_column is null then format('%s cannot be imported: p_columns gives it no column for %s', a.source, v_target.name)
          else format('%s cannot be imported: it has no column %s for %s', a.source, v_column, v_target.name)
        end,
        hint = format('Name the right one: p_columns => ''{"%s": "name"}''. Its columns: %s.', v_target.name, (
          select string_agg(t.attname, ', ' order by t.attnum)
          from pg_attribute t
          where t.attrelid = p_source and t.attnum > 0 and not t.attisdropped
        ));
    end if;
    a.columns := a.columns || jsonb_build_object(v_target.name, case when found then v_column end);
    if not found then
      continue;
    end if;
    if v_target.name = 'device_id' then
      v_id_type := v_type;
      continue;
    end if;
    begin
      execute format('select null::%s::%s', v_type, v_target.type);
    exception when cannot_coerce then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s cannot be imported: column %s is %s, which cannot be converted to %s for %s', a.source, v_column, v_type,
          v_target.type, v_target.name
        ),
        hint = format(
          'Leave it out with p_columns => ''{"%s": null}'', or add a column of a suitable type to the table.', v_target.name
        );
    end;
  end loop;

  if a.unknown_devices not in ('refuse', 'enroll') or not isfinite(a.oldest) or a.oldest > now() then
    raise exception using
      errcode = 'FL422',
      message = case
        when a.unknown_devices not in ('refuse', 'enroll') then
          format('%s cannot be imported with p_unknown_devices => %s', a.source, a.unknown_devices)
        else format('%s cannot be imported with p_oldest => %s', a.source, a.oldest)
      end,
      hint = 'p_unknown_devices must be refuse or enroll; p_oldest must be a time in the past.';
  end if;
  a.match_by := case
    when exists (select from fleet.import_devices m where m.source = a.source) then 'map'
    when v_id_type in ('smallint', 'integer', 'bigint') then 'device_id'
    else 'alias'
  end;
  if pg_relation_size(p_source) = 0 then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be imported: it is empty', a.source),
      hint = 'There is nothing to move; point the devices at the new server.';
  end if;
  return a;
end
$$;

comment on function fleet.describe_source(regclass, jsonb, text, timestamptz, boolean) is
  'How a table would be imported: its columns, and how its devices are found. If the table cannot be imported, the error FL422 '
  'says why. Called by fleet.import_table() and fleet.import_plan().';
--! EndIncluded import/describe_source.sql
--! Included import/end_import.sql
create or replace function fleet.end_import(p_source text, p_error text default null) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_error is not null then
    update fleet.imports f set last_error = p_error where f.source = p_source;
    perform fleet.record_event('import.stopped', p_is_ok => false, p_detail => format('%s: %s', p_source, p_error));
  end if;
  perform pg_advisory_unlock(hashtextextended('fleet.import', 0));
  return (select f.state from fleet.imports f where f.source = p_source);
end
$$;

comment on function fleet.end_import(text, text) is
  'Ends a run of an import: records why it stopped, if it failed, releases the lock, and returns the state.';
--! EndIncluded import/end_import.sql
--! Included import/enroll_unknown.sql
-- Nobody knows the tokens of these devices. fleet.renew_token() gives a new one to a device that is still in use.
create or replace function fleet.enroll_unknown(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows bigint;
begin
  if a.unknown_devices <> 'enroll' then
    return false;
  end if;
  -- Blocks other enrolments: no other device may get a number between this look and the insert.
  lock table fleet.devices in share row exclusive mode;
  if a.match_by = 'device_id' then
    -- A numeric id stays the same, because no device is enrolled under it, and new devices get higher ones.
    perform setval(pg_get_serial_sequence('fleet.devices', 'device_id'), greatest(
      (
        select max(r.source_device::bigint)
        from fleet.import_refusals r
        where r.source = a.source and r.reason = 'unknown_device' and r.source_device <> ''
      ),
      nextval(pg_get_serial_sequence('fleet.devices', 'device_id'))
    ));
  end if;
  with unknown as (
    select r.source_device, r.first_ts,
      case a.match_by
        when 'device_id' then r.source_device::bigint
        else nextval(pg_get_serial_sequence('fleet.devices', 'device_id'))
      end as device_id
    from fleet.import_refusals r
    where r.source = a.source and r.reason = 'unknown_device'
      and btrim(r.source_device) <> '' and length(r.source_device) <= 200
  ),
  enrolled as (
    insert into fleet.devices (device_id, alias, token_hash)
    overriding system value
    select u.device_id, u.source_device, fleet.hash_token(fleet.make_token('nxd_'))
    from unknown u
    order by u.source_device
    on conflict do nothing
    returning device_id, alias
  ),
  statuses as (
    insert into fleet.device_last_status (device_id, is_silent)
    select e.device_id, false
    from enrolled e
    order by e.device_id
  ),
  mapped as (
    insert into fleet.import_devices (source, source_device, device_id)
    select a.source, e.alias, e.device_id
    from enrolled e
    where a.match_by = 'map'
    on conflict do nothing
  ),
  gone as (
    delete from fleet.import_refusals r
    using enrolled e
    where r.source = a.source and r.reason = 'unknown_device' and r.source_device = e.alias
  )
  select count(*) into v_rows from enrolled;
  if v_rows > 0 then
    perform fleet.record_event('import.enroll', p_rows => v_rows, p_detail => format('devices of %s', a.source));
  end if;
  return false;
end
$$;

comment on function fleet.enroll_unknown(fleet.imports) is
  'Enrolls the devices of a table that is being imported and that are not enrolled yet, if p_unknown_devices asks for that; '
  'numeric ids stay the same.';
--! EndIncluded import/enroll_unknown.sql
--! Included import/forget_import.sql
create or replace function fleet.forget_import(p_source text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports;
begin
  select f.* into a from fleet.imports f where f.source = p_source for update;
  if not found then
    return false;
  end if;
  if a.state not in ('confirmed', 'abandoned') and fleet.source_table(a) is not null then
    raise exception using
      errcode = 'FL002',
      message = format('the import of %s is %s, and the table still exists', p_source, a.state),
      hint = format(
        'Confirm or abandon it first: select fleet.confirm_import(%1$L); or call fleet.abandon_import(%1$L);', p_source
      );
  end if;
  perform fleet.stop_forwarding(a);
  delete from fleet.import_ranges r where r.source = p_source;
  delete from fleet.import_refusals r where r.source = p_source;
  delete from fleet.import_days d where d.source = p_source;
  delete from fleet.import_devices d where d.source = p_source;
  delete from fleet.imports f where f.source = p_source;
  perform fleet.record_event('import.forgotten', p_detail => format('%s, by %s', p_source, session_user));
  return true;
end
$$;

comment on function fleet.forget_import(text) is
  'Deletes what is recorded about the import of a table, once the import is confirmed or abandoned or the table is gone; false '
  'if nothing is recorded. Heartbeats stay. Example: select fleet.forget_import(''public.device_heartbeats'');';
--! EndIncluded import/forget_import.sql
--! Included import/source_table.sql
create or replace function fleet.source_table(a fleet.imports) returns oid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case
    when a.relid_seal = fleet_guard.seal(a.relid) then (select c.oid from pg_class c where c.oid = a.relid)
    else (select c.oid from pg_class c where c.oid = to_regclass(a.source) and c.relkind = 'r')
  end;
$$;

comment on function fleet.source_table(fleet.imports) is
  'The oid of a table that is being imported, or null if it is gone. Found by name if fleet.imports.relid came with a dump of '
  'another cluster.';
--! EndIncluded import/source_table.sql
--! Included import/import_holds.sql
create or replace function fleet.import_holds() returns table (source text, since timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select a.source, min(d.day)::timestamptz
  from fleet.imports a
  join pg_class c on c.oid = fleet.source_table(a)
  join fleet.import_days d on d.source = a.source
  where a.state in ('moving', 'moved', 'verified', 'abandoning')
  group by a.source;
$$;

comment on function fleet.import_holds() is
  'Tables whose import is neither confirmed nor abandoned, with the first day of their rows. Partitions from that day on are not '
  'retired, so that imported rows can be verified.';
--! EndIncluded import/import_holds.sql
--! Included import/import_plan.sql
create or replace function fleet.import_plan(
  p_source regclass,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null
) returns table (item text, detail text, rows bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set jit = off
as $$
#variable_conflict use_column
declare
  c_blocks constant integer := 256;
  a fleet.imports := fleet.describe_source(p_source, p_columns, p_unknown_devices, p_oldest, true);
begin
  return query
    select 'column', format(
      '%s: %s', k.name,
      coalesce(
        t.attname || ', ' || format_type(t.atttypid, t.atttypmod),
        case k.name when 'received_at' then 'none, ts is used' else 'none, stays null' end
      ) || case when k.name = 'device_id' then case a.match_by
        when 'device_id' then ', the device_id of fleet.devices'
        when 'alias' then ', the alias in fleet.devices'
        else ', as fleet.import_devices says'
      end else '' end
    ), null::bigint
    from fleet.archive_columns('fleet.device_heartbeats') k
    left join pg_attribute t on t.attrelid = p_source and t.attname = a.columns ->> k.name
    order by k.position;
  return query
    with given as (
      select r.reason, (r.beat).ts as ts, r.source_device
      from generate_series(0, pg_relation_size(p_source) / current_setting('block_size')::bigint, c_blocks) as g (block)
      cross join lateral fleet.read_source(a, g.block, g.block + c_blocks) r
    ),
    days as materialized (
      select g.reason, g.ts::date as day, min(g.ts) as first_ts, max(g.ts) as last_ts, count(*) as rows,
        count(distinct g.source_device) filter (where g.reason = 'unknown_device') as devices
      from given g
      group by 1, 2
    )
    select
      case
        when d.reason is null then 'taken'
        when d.reason = 'unknown_device' and a.unknown_devices = 'enroll' then 'enrolled and taken'
        else 'refused: ' || d.reason
      end,
      format('%s to %s', min(d.first_ts), max(d.last_ts)), sum(d.rows)::bigint
    from days d
    group by d.reason
    union all
    select 'partitions', format('to be created, from %s to %s', min(m.day), max(m.day)), count(*)
    from (
      select w.day::date as day
      from (select min(d.day) as first_day, max(d.day) as last_day from days d where d.reason is null) s
      cross join generate_series(s.first_day, s.last_day, interval '1 day') as w (day)
      except
      select generate_series(p.range_start, p.range_end - interval '1 day', interval '1 day')::date
      from fleet.attached_partitions() p
    ) m
    where not fleet.retired_ranges() @> m.day::timestamptz
    having count(*) > 0;
end
$$;

comment on function fleet.import_plan(regclass, jsonb, text, timestamptz) is
  'Dry run of fleet.import_table(): which columns it would take, how many rows, which rows it would refuse and why, and which '
  'partitions it would create. Reads the whole table and changes nothing. '
  'Example: select * from fleet.import_plan(''public.device_heartbeats'');';
--! EndIncluded import/import_plan.sql
--! Included jobs/lock_holders.sql
create or replace function fleet.lock_holders(p_lock text) returns setof integer
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select l.pid
  from pg_locks l
  where l.locktype = 'advisory' and l.granted and l.objsubid = 1
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('fleet.' || p_lock, 0);
$$;

comment on function fleet.lock_holders(text) is
  'The backend that holds the lock of maintenance, reconcile or import; no row if it is free. Example: select * from '
  'fleet.lock_holders(''maintenance'');';
--! EndIncluded jobs/lock_holders.sql
--! Included import/import_progress.view.sql
create or replace view fleet.import_progress as
select a.source, a.state, a.step,
  exists (select from fleet.lock_holders('import') h where h = a.backend) and cardinality(a.steps) > 0 as is_running,
  case
    when cardinality(a.steps) = 0 then 100
    when a.step is null then 0
    when a.step_total > 0 then round(least(100.0 * a.step_done / a.step_total, 100), 1)
    else 100
  end as percent,
  round(a.step_rows / nullif(extract(epoch from a.updated_at - a.step_started_at), 0)) as rows_per_s,
  case
    when cardinality(a.steps) > 0 and a.step_done > a.step_from then
      date_trunc('second', a.updated_at + (a.updated_at - a.step_started_at) * (
        (a.step_total - a.step_done)::double precision / (a.step_done - a.step_from)
      ))
  end as step_ends_at,
  a.rows_read, a.rows_stored, a.rows_duplicate, a.rows_refused,
  d.rows_kept, d.rows_missing, d.rows_changed,
  a.rows_written_back, a.pass, a.started_at, a.updated_at, a.moved_at, a.verified_at, a.confirmed_at, a.abandoned_at, a.last_error
from fleet.imports a
left join lateral (
  select sum(d.rows_kept) as rows_kept, sum(d.rows_missing) as rows_missing, sum(d.rows_changed) as rows_changed
  from fleet.import_days d
  where d.source = a.source and d.checked_at is not null
) d on true
order by a.started_at desc;

comment on view fleet.import_progress is
  'The plain tables that are being imported or were imported, and how far each import is. percent, rows_per_s and step_ends_at '
  'describe the current step (survey, partitions, move, verify, write_back), the columns rows_read to rows_refused the current '
  'pass, and rows_kept to rows_changed the verification. '
  'Example: select source, state, step, percent, rows_per_s, step_ends_at from fleet.import_progress;';
--! EndIncluded import/import_progress.view.sql
--! Included import/import_step.sql
create or replace function fleet.import_step(p_source text, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
set jit = off
as $$
declare
  a fleet.imports;
  v_step text;
  v_more boolean;
begin
  perform fleet.relink_tables();
  select f.* into a from fleet.imports f where f.source = p_source for update;
  v_step := a.steps[1];
  if v_step is null then
    return false;
  end if;
  if pg_relation_filenode(a.relid) is null then
    raise exception using
      errcode = 'FL404',
      message = format('table %s is gone', p_source),
      hint = format('What was imported is in the store. To end the import: select fleet.forget_import(%L);', p_source);
  end if;
  -- A rewrite of the table (VACUUM FULL, CLUSTER) moves its rows to other blocks, so it is read from the start.
  if a.step is distinct from v_step or (v_step in ('survey', 'move') and a.filenode <> pg_relation_filenode(a.relid)) then
    perform fleet.begin_import_step(a);
    return true;
  end if;

  case v_step
    when 'survey' then v_more := fleet.survey_blocks(a, p_batch_rows);
    when 'enroll' then v_more := fleet.enroll_unknown(a);
    when 'partitions' then v_more := fleet.prepare_partitions(a);
    when 'forward' then v_more := fleet.start_forwarding(a);
    when 'move' then v_more := fleet.move_blocks(a, p_batch_rows);
    when 'verify' then v_more := fleet.verify_days(a, p_batch_rows * 10);
    when 'unforward' then v_more := fleet.stop_forwarding(a);
    when 'write_back' then v_more := fleet.write_back_partition(a);
  end case;
  update fleet.imports f
  set updated_at = clock_timestamp(), last_error = null,
    step = case when v_more then f.step end,
    steps = case when v_more then f.steps else f.steps[2:] end
  where f.source = p_source;
  return v_more or cardinality(a.steps) > 1;
end
$$;

comment on function fleet.import_step(text, integer) is
  'Does the next batch of an import, in this transaction; false when nothing is left. Called by fleet.run_import().';
--! EndIncluded import/import_step.sql
--! Included import/import_table.sql
create or replace procedure fleet.import_table(
  p_source regclass,
  inout p_state text default null,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null,
  p_forward boolean default null,
  p_batch_rows integer default 5000,
  p_pause interval default '20 milliseconds'
)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;  -- inside a transaction this fails, before the lock is taken
  if p_batch_rows is null or p_batch_rows not between 1 and 100000
    or p_pause is null or p_pause not between '0' and '1 minute' then
    raise exception using
      errcode = 'FL422',
      message = pg_catalog.format(
        'cannot import in batches of %s rows with pauses of %s', coalesce(p_batch_rows::text, 'null'),
        coalesce(p_pause::text, 'null')
      ),
      hint = 'p_batch_rows must be 1 to 100000, p_pause 0 to 1 minute.';
  end if;
  v_source := fleet.begin_import(p_source, p_columns, p_unknown_devices, p_oldest, p_forward);
  commit;
  call fleet.run_import(v_source, p_batch_rows, p_pause, p_state);
end
$$;

comment on procedure fleet.import_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval) is
  'Imports a plain table of heartbeats into fleet.device_heartbeats while both are in use. The rows of the table do not change. '
  'A call that was interrupted is continued by the next one; after a complete call, another one imports what is still missing. '
  'Look at fleet.import_plan() first. Options: p_columns => ''{"battery_pct": "battery"}'' where names differ; '
  'p_unknown_devices => ''enroll''; p_oldest; p_forward => false for no trigger on the table; p_batch_rows; p_pause. '
  'Example: call fleet.import_table(''public.device_heartbeats'');';
--! EndIncluded import/import_table.sql
--! Included import/seal_source.sql
create or replace function fleet.seal_source() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.relid_seal := coalesce(new.relid_seal, fleet_guard.seal(new.relid));
  return new;
end
$$;

comment on function fleet.seal_source() is
  'Trigger on fleet.imports: sets relid_seal, which marks relid as recorded in this database.';
--! EndIncluded import/seal_source.sql
--! Included import/imports_seal.trigger.sql
create or replace trigger imports_seal
  before insert on fleet.imports
  for each row execute function fleet.seal_source();

comment on trigger imports_seal on fleet.imports is 'Sets relid_seal, which marks relid as recorded in this database.';
--! EndIncluded import/imports_seal.trigger.sql
--! Included partitions/retired_ranges.sql
create or replace function fleet.retired_ranges() returns tstzmultirange
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(range_agg(tstzrange(p.range_start, p.range_end)), '{}')
  from fleet.hb_partitions p
  where p.state not in ('active', 'restored') and not (p.state = 'dropped' and p.row_count = 0);
$$;

comment on function fleet.retired_ranges() is
  'The ranges of the partitions that were retired with rows. fleet.request_restore() brings them back; no new partitions are '
  'created for them.';
--! EndIncluded partitions/retired_ranges.sql
--! Included import/source_query.sql
-- Decides what becomes of a row: the same for the move, the trigger, the verification and the list of refused rows.
create or replace function fleet.source_query(a fleet.imports, p_from text, p_tid text) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
  select format(
    $query$
      select c.tid, c.source_device,
        case
          when c.ts is null then 'no_ts'
          when c.ts < %1$L then 'too_old'
          -- Compared with the time of its arrival, if that is known.
          when c.ts > coalesce(c.received_at, now()) + s.max_future then 'in_future'
          when c.device_id is null then 'unknown_device'
          when p.retired @> c.ts then 'retired_day'
        end as reason,
        row(%2$s)::fleet.device_heartbeats as beat
      from (
        select %3$s as tid, r.%4$I::text as source_device, %5$s as device_id, %6$s
        from %7$s
        left join fleet.import_devices m on m.source = %8$L and m.source_device = r.%4$I::text
        left join fleet.devices d on %9$s
      ) c
      cross join fleet.settings s
      cross join fleet.retired_ranges() as p (retired)
    $query$,
    a.oldest,
    string_agg(
      case k.name
        -- Infinity has no canonical form.
        when 'received_at' then 'case when isfinite(c.received_at) then c.received_at else c.ts end'
        when 'ip' then case a.store_ip
          when 'full' then 'c.ip'
          when 'prefix' then 'network(set_masklen(c.ip, case family(c.ip) when 4 then 24 else 48 end))::inet'
          else 'null'
        end
        else format('c.%I', k.name)
      end,
      ', ' order by k.position
    ),
    p_tid,
    a.columns ->> 'device_id',
    case a.match_by when 'map' then 'm.device_id' else 'coalesce(m.device_id, d.device_id)' end,
    string_agg(
      coalesce('r.' || quote_ident(a.columns ->> k.name), 'null') || format('::%s as %I', k.type, k.name),
      ', ' order by k.position
    ) filter (where k.name <> 'device_id'),
    p_from,
    a.source,
    case a.match_by
      when 'map' then 'false'
      when 'alias' then format('d.alias = r.%I::text', a.columns ->> 'device_id')
      else format('d.device_id = r.%I', a.columns ->> 'device_id')
    end
  )
  from fleet.archive_columns('fleet.device_heartbeats') k;
$$;

comment on function fleet.source_query(fleet.imports, text, text) is
  'The query that turns the rows of p_from, which has the alias r, into rows of fleet.source_row: it finds their devices, casts '
  'their values, and decides which are refused.';
--! EndIncluded import/source_query.sql
--! Included import/read_source.sql
-- Stable, so that it uses the caller's snapshot: its rows are compared with the store in one statement.
create or replace function fleet.read_source(a fleet.imports, p_first bigint, p_last bigint, p_since xid default null)
returns setof fleet.source_row
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set jit = off
as $$
declare
  c_rows constant text := 'select array_agg(row(q.tid, q.source_device, q.reason, q.beat)::fleet.source_row) from (%s) q';
  v_first tid := format('(%s,0)', p_first)::tid;
  v_last tid := format('(%s,0)', p_last)::tid;
  v_middle bigint := (p_first + p_last) / 2;
  v_range text := format('%s r where r.ctid >= $1 and r.ctid < $2', a.source)
    || case when p_since is not null then format(' and age(r.xmin) <= age(%L::xid)', p_since) else '' end;
  v_all text := format(c_rows, fleet.source_query(a, format('(select r.*, r.ctid from %s) r', v_range), 'r.ctid'));
  v_one text := format(
    c_rows, fleet.source_query(a, format('(select r.*, r.ctid from %s r where r.ctid = $1) r', a.source), 'r.ctid')
  );
  v_rows fleet.source_row[];
  v_tid tid;
begin
  begin
    -- All rows are read before the first is returned, because returned rows would stay even if the query failed after them.
    execute v_all into v_rows using v_first, v_last;
    return query select * from unnest(v_rows);
    return;
  exception when data_exception then
    null;  -- a value does not fit; it is searched for in halves, then row by row
  end;
  if v_middle > p_first then
    return query select * from fleet.read_source(a, p_first, v_middle, p_since);
    return query select * from fleet.read_source(a, v_middle, p_last, p_since);
    return;
  end if;
  for v_tid in execute 'select r.ctid from ' || v_range using v_first, v_last loop
    begin
      execute v_one into v_rows using v_tid;
    exception when data_exception then
      v_rows := array[row(v_tid, null, 'unreadable', null)::fleet.source_row];
    end;
    return query select * from unnest(v_rows);
  end loop;
end
$$;

comment on function fleet.read_source(fleet.imports, bigint, bigint, xid) is
  'The rows in a range of blocks of a table that is being imported, each as a heartbeat or with the reason why it is refused. '
  'p_since: only rows written by that transaction or a later one.';
--! EndIncluded import/read_source.sql
--! Included import/missing_heartbeats.sql
create or replace function fleet.missing_heartbeats(a fleet.imports, p_from timestamptz, p_to timestamptz)
returns setof fleet.device_heartbeats
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with given as materialized (
    select (r.beat).device_id, date_bin('10 seconds', (r.beat).ts, timestamptz '2000-01-01 00:00:00+00') as bucket
    from fleet.import_ranges g
    cross join lateral fleet.read_source(a, g.first_block, g.last_block) r
    where g.source = a.source and g.first_ts < p_to and g.last_ts >= p_from and r.reason is null
  )
  select h.*
  from fleet.device_heartbeats h
  where h.ts >= p_from and h.ts < p_to
    and h.received_at >= a.started_at
    and not exists (
      select from given g
      where g.device_id = h.device_id and g.bucket = date_bin('10 seconds', h.ts, timestamptz '2000-01-01 00:00:00+00')
    );
$$;

comment on function fleet.missing_heartbeats(fleet.imports, timestamptz, timestamptz) is
  'The heartbeats of a time range that the store has received since the import of a table began and for whose device and '
  '10-second bucket the table has no row.';
--! EndIncluded import/missing_heartbeats.sql
--! Included import/move_blocks.sql
create or replace function fleet.move_blocks(a fleet.imports, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_last bigint := least(a.end_block, a.next_block + a.batch_blocks);
  v_rows bigint;
  v_refused bigint;
  v_stored bigint;
begin
  -- Tried twice at most: since the days were counted, a row may have arrived for a day that has no partition.
  for v_try in 1..2 loop
    begin
      with given as materialized (
        select * from fleet.read_source(a, a.next_block, v_last)
      ),
      stored as (
        insert into fleet.device_heartbeats
        select (g.beat).*
        from given g
        where g.reason is null
        -- Sorted by device, as in ingest; within a bucket the row that was written first comes first.
        order by (g.beat).device_id, date_bin('10 seconds', (g.beat).ts, timestamptz '2000-01-01 00:00:00+00'), g.tid
        on conflict do nothing
        returning device_id, ts, received_at
      ),
      days as (
        insert into fleet.import_days as d (source, day, rows_stored)
        select a.source, s.ts::date, count(*)
        from stored s
        group by s.ts::date
        on conflict (source, day) do update
          set rows_stored = d.rows_stored + excluded.rows_stored
      ),
      devices as (
        -- A device existed when it sent a heartbeat, so the roster must not show a later enrolment.
        update fleet.devices d
        set enrolled_at = f.first_received_at
        from (select s.device_id, min(s.received_at) as first_received_at from stored s group by s.device_id) f
        where d.device_id = f.device_id and d.enrolled_at > f.first_received_at
      )
      select count(*), count(g.reason), (select count(*) from stored)
      into v_rows, v_refused, v_stored
      from given g;
      exit;
    exception when check_violation then
      if v_try = 2 then
        raise;
      end if;
      perform fleet.sync_partitions();
      perform fleet.create_partitions(r.day, r.day)
      from (
        select distinct (r.beat).ts::date as day from fleet.read_source(a, a.next_block, v_last) r where r.reason is null
      ) r
      where not exists (select from fleet.attached_partitions() p where p.range_start <= r.day and p.range_end > r.day);
    end;
  end loop;

  update fleet.imports f
  set next_block = v_last, step_done = v_last, step_rows = f.step_rows + v_rows,
    rows_read = f.rows_read + v_rows, rows_stored = f.rows_stored + v_stored, rows_refused = f.rows_refused + v_refused,
    rows_duplicate = f.rows_duplicate + v_rows - v_stored - v_refused,
    batch_blocks = fleet.next_batch_blocks(a.batch_blocks, v_rows, p_batch_rows)
  where f.source = a.source;
  if v_last < a.end_block then
    return true;
  end if;

  -- The next nightly run counts these partitions again.
  update fleet.hb_partitions p
  set row_count = null
  where p.state = 'active' and p.row_count is not null and p.archive_url is null
    and exists (
      select from fleet.import_days d
      where d.source = a.source and d.rows_stored > 0 and d.day >= p.range_start::date and d.day < p.range_end::date
    );
  update fleet.imports f
  set state = 'moved', moved_at = clock_timestamp()
  where f.source = a.source
  returning * into a;
  perform fleet.record_event(
    'import.moved', p_rows => a.rows_stored, p_duration_ms => fleet.elapsed_ms(a.started_at),
    p_detail => format(
      '%s, pass %s: %s read, %s duplicates, %s refused', a.source, a.pass, a.rows_read, a.rows_duplicate, a.rows_refused
    )
  );
  return false;
end
$$;

comment on function fleet.move_blocks(fleet.imports, integer) is
  'Stores the rows of the next blocks of a table that is being imported; false after the last block. The cursor advances in the '
  'same transaction, and existing heartbeats are kept.';
--! EndIncluded import/move_blocks.sql
--! Included import/next_batch_blocks.sql
create or replace function fleet.next_batch_blocks(p_blocks integer, p_rows bigint, p_wanted integer) returns integer
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select greatest(1, least(p_blocks * 4, 8192, p_blocks::bigint * p_wanted / greatest(p_rows, 1)))::integer;
$$;

comment on function fleet.next_batch_blocks(integer, bigint, integer) is
  'How many blocks to read next to get the wanted number of rows, estimated from the last batch; at most four times as many as '
  'in the last batch.';
--! EndIncluded import/next_batch_blocks.sql
--! Included import/prepare_partitions.sql
create or replace function fleet.prepare_partitions(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  c_days_at_once constant integer := 5;  -- creating one locks the parent for about 10 ms, and heartbeats wait that long
  c_most_empty constant integer := 400;
  v_first date;
  v_last date;
  v_missing date;
  v_days bigint;
  v_usual date;
begin
  select min(d.day), max(d.day), count(*) into v_first, v_last, v_days
  from fleet.import_days d
  where d.source = a.source and d.rows_found > 0;
  if v_first is null then
    return false;
  end if;

  if not a.is_oldest_given and v_last - v_first + 1 - v_days > c_most_empty then
    -- The day after the longest gap.
    select g.day into v_usual
    from (
      select d.day, d.day - lag(d.day) over (order by d.day) as gap
      from fleet.import_days d
      where d.source = a.source and d.rows_found > 0
    ) g
    order by g.gap desc nulls last
    limit 1;
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s has heartbeats from %s to %s but none on %s days in between: some clocks were wrong', a.source, v_first, v_last,
        v_last - v_first + 1 - v_days
      ),
      hint = format(
        'Give the oldest time to import; older rows are refused: call fleet.import_table(%L, p_oldest => %L); '
          'if all of them are right, use %s.',
        a.source, v_usual, v_first
      );
  end if;

  select m.day into v_missing
  from (
    select d.day::date as day
    from generate_series(v_first, v_last, interval '1 day') as d (day)
    except
    select generate_series(p.range_start, p.range_end - interval '1 day', interval '1 day')::date
    from fleet.attached_partitions() p
  ) m
  cross join fleet.retired_ranges() as r (retired)
  where not r.retired @> m.day::timestamptz
  order by m.day
  limit 1;
  if v_missing is null then
    return false;
  end if;
  perform fleet.create_partitions(v_missing, least(v_missing + c_days_at_once - 1, v_last));
  update fleet.imports f
  set step_done = v_missing - v_first
  where f.source = a.source;
  return true;
end
$$;

comment on function fleet.prepare_partitions(fleet.imports) is
  'Creates the next partitions for the days of a table that is being imported, from its first day to its last; false when none '
  'is missing. It creates none for days in the archive, which fleet.request_restore() brings back.';
--! EndIncluded import/prepare_partitions.sql
--! Included import/record_forward_failure.sql
-- Runs inside the old application's transactions: it must not fail, and must not lock a row that others of them would wait for.
create or replace function fleet.record_forward_failure(p_source text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.events e where e.event = 'import.forward' and e.at > clock_timestamp() - interval '1 minute'
  ) then
    perform fleet.record_event(
      'import.forward', p_is_ok => false, p_detail => format('%s: %s; the next pass imports those rows', p_source, p_error)
    );
  end if;
exception when others then
  null;
end
$$;

comment on function fleet.record_forward_failure(text, text) is
  'Records in fleet.events, at most once a minute, that new rows of a table that is being imported could not be forwarded.';
--! EndIncluded import/record_forward_failure.sql
--! Included import/refused_rows.sql
create or replace function fleet.refused_rows(p_source regclass, p_limit integer default 100)
returns table (reason text, source_device text, ts timestamptz, source_row jsonb)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  a fleet.imports := fleet.get_import(p_source);
  v_row fleet.source_row;
begin
  for v_row in
    select r.*
    from fleet.import_ranges g
    cross join lateral fleet.read_source(a, g.first_block, g.last_block) r
    where g.source = a.source and g.rows_refused > 0 and r.reason is not null
    limit p_limit
  loop
    reason := v_row.reason;
    source_device := v_row.source_device;
    ts := (v_row.beat).ts;
    execute format('select to_jsonb(r) from %s r where r.ctid = $1', a.source) into source_row using v_row.tid;
    return next;
  end loop;
end
$$;

comment on function fleet.refused_rows(regclass, integer) is
  'The rows of a table that its import refused, unchanged, with the reason; fleet.import_refusals counts them. '
  'Example: select * from fleet.refused_rows(''public.device_heartbeats'', 20);';
--! EndIncluded import/refused_rows.sql
--! Included import/run_import.sql
-- Each batch is a transaction: wherever a run is killed, the committed batches stay, and the cursor with them.
create or replace procedure fleet.run_import(
  p_source text,
  p_batch_rows integer,
  p_pause interval,
  inout p_state text
)
language plpgsql
as $$
declare
  v_more boolean;
  v_code text;
  v_error text;
  v_hint text;
  v_attempt integer := 0;
begin
  loop
    v_error := null;
    begin
      perform pg_catalog.pg_sleep(pg_catalog.date_part('epoch', p_pause) + 0.2 * v_attempt);
      v_more := fleet.import_step(p_source, p_batch_rows);
    exception when query_canceled or others then
      get stacked diagnostics v_code = returned_sqlstate, v_error = message_text, v_hint = pg_exception_hint;
    end;
    commit;
    if v_error is null then
      v_attempt := 0;
      exit when not v_more;
    elsif v_attempt < 20 and (v_code in ('55P03', '40P01', '40001') or v_error like '%lock timeout%') then
      v_attempt := v_attempt + 1;
    else
      p_state := fleet.end_import(p_source, v_error);
      commit;
      raise exception using
        errcode = v_code, message = v_error,
        hint = pg_catalog.concat_ws(' ', nullif(v_hint, ''), 'What was done is kept; the same call continues from there.');
    end if;
  end loop;
  p_state := fleet.end_import(p_source);
  commit;
end
$$;

comment on procedure fleet.run_import(text, integer, interval, text) is
  'Does the remaining work of an import, batch by batch; waits and tries again when a lock is busy.';
--! EndIncluded import/run_import.sql
--! Included import/start_forwarding.sql
-- Each table has its own trigger function: it is compiled once, and dropping it also drops the trigger, which otherwise only
-- the owner of the table may do.
create or replace function fleet.start_forwarding(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not a.forwards then
    return fleet.stop_forwarding(a);
  end if;
  execute format(
    $function$
      create or replace function fleet.%1$I() returns trigger
      language plpgsql
      volatile
      security definer
      set search_path = pg_catalog, pg_temp
      set timezone = 'UTC'
      set datestyle = 'ISO, MDY'
      set lock_timeout = '300ms'
      set jit = off
      as $forward$
      begin
        begin
          insert into fleet.device_heartbeats
          select (q.beat).*
          from (%2$s) q
          where q.reason is null
          order by (q.beat).device_id, (q.beat).ts
          on conflict do nothing;
        exception when others then
          perform fleet.record_forward_failure(%3$L, sqlerrm);
        end;
        return null;
      end
      $forward$
    $function$,
    'forward_' || a.relid, fleet.source_query(a, 'new_rows r', 'null::tid'), a.source
  );
  execute format(
    'comment on function fleet.%I() is %L', 'forward_' || a.relid,
    format('Trigger on %s: forwards new rows to the store until the import is confirmed or abandoned.', a.source)
  );
  -- Waits for running writers and blocks new ones until the commit. Then each row either is in the table already or is forwarded.
  execute format(
    'create or replace trigger fleet_forward after insert on %s referencing new table as new_rows '
      'for each statement execute function fleet.%I()',
    a.source, 'forward_' || a.relid
  );
  return false;
end
$$;

comment on function fleet.start_forwarding(fleet.imports) is
  'Creates a trigger on a table that is being imported, which forwards new rows to the store.';
--! EndIncluded import/start_forwarding.sql
--! Included import/stop_forwarding.sql
create or replace function fleet.stop_forwarding(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
begin
  execute format('drop function if exists fleet.%I() cascade', 'forward_' || a.relid);
  return false;
end
$$;

comment on function fleet.stop_forwarding(fleet.imports) is 'Removes the trigger of an import, with its function.';
--! EndIncluded import/stop_forwarding.sql
--! Included import/survey_blocks.sql
create or replace function fleet.survey_blocks(a fleet.imports, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_last bigint := least(a.end_block, a.next_block + a.batch_blocks);
  v_rows bigint;
begin
  with given as materialized (
    select r.source_device, (r.beat).ts as ts,
      -- Devices that are about to be enrolled count as enrolled.
      case when not (r.reason = 'unknown_device' and a.unknown_devices = 'enroll') then r.reason end as reason,
      r.reason = 'unknown_device' as is_unknown
    from fleet.read_source(a, a.next_block, v_last) r
  ),
  ranges as (
    insert into fleet.import_ranges (source, first_block, last_block, first_ts, last_ts, rows_refused)
    select a.source, a.next_block, v_last, min(g.ts) filter (where g.reason is null), max(g.ts) filter (where g.reason is null),
      count(g.reason)
    from given g
  ),
  days as (
    insert into fleet.import_days as d (source, day, rows_found)
    select a.source, g.ts::date, count(*)
    from given g
    where g.reason is null
    group by g.ts::date
    on conflict (source, day) do update
      set rows_found = d.rows_found + excluded.rows_found
  ),
  refusals as (
    insert into fleet.import_refusals as f (source, reason, source_device, rows, first_ts, last_ts)
    select a.source, case when g.is_unknown then 'unknown_device' else g.reason end,
      case when g.is_unknown then coalesce(g.source_device, '') else '' end, count(*), min(g.ts), max(g.ts)
    from given g
    where g.reason is not null or g.is_unknown
    group by 2, 3
    on conflict (source, reason, source_device) do update
      set rows = f.rows + excluded.rows, first_ts = least(f.first_ts, excluded.first_ts),
        last_ts = greatest(f.last_ts, excluded.last_ts)
  )
  select count(*) into v_rows from given;

  update fleet.imports f
  set next_block = v_last, step_done = v_last, step_rows = f.step_rows + v_rows,
    batch_blocks = fleet.next_batch_blocks(a.batch_blocks, v_rows, p_batch_rows)
  where f.source = a.source;
  return v_last < a.end_block;
end
$$;

comment on function fleet.survey_blocks(fleet.imports, integer) is
  'Counts the next blocks of a table that is being imported: rows by day, refused rows by reason, and which blocks hold which '
  'days; false after the last block.';
--! EndIncluded import/survey_blocks.sql
--! Included import/take_import_lock.sql
create or replace function fleet.take_import_lock() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_holder integer := (select h from fleet.lock_holders('import') h limit 1);
begin
  -- A session lock, because it has to outlive the run's transactions. A cancelled run of this session may have left it behind.
  if v_holder is distinct from pg_backend_pid() and not pg_try_advisory_lock(hashtextextended('fleet.import', 0)) then
    raise exception using
      errcode = 'FL003',
      message = format(
        'a table is already being imported, in backend %s',
        coalesce(v_holder, (select h from fleet.lock_holders('import') h limit 1))
      ),
      hint = 'See select * from fleet.import_progress. If it is stuck: select * from fleet.force_unlock(''import''); '
        'the next run continues where it stopped.';
  end if;
end
$$;

comment on function fleet.take_import_lock() is
  'Takes the lock of imports for this session, or raises an error that names the backend that holds it.';
--! EndIncluded import/take_import_lock.sql
--! Included import/verify_days.sql
create or replace function fleet.verify_days(a fleet.imports, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set enable_nestloop = off  -- the planner cannot guess how many rows there are
as $$
declare
  v_first date;
  v_last date;
  v_rows bigint;
  v_bad bigint;
begin
  select min(w.day), max(w.day), sum(w.rows_found) into v_first, v_last, v_rows
  from (
    select d.day, d.rows_found, sum(d.rows_found) over (order by d.day) - d.rows_found as rows_before
    from fleet.import_days d
    where d.source = a.source and d.rows_found > 0 and d.checked_at is null
  ) w
  where w.rows_before < p_batch_rows;

  if v_first is not null then
    -- One snapshot: a row that the trigger forwards is visible on both sides or on neither.
    execute format(
      $query$
        with given as (
          select r.beat
          from fleet.import_ranges g
          cross join lateral fleet.read_source($1, g.first_block, g.last_block) r
          where g.source = ($1).source and g.first_ts < $3 and g.last_ts >= $2
            and r.reason is null and (r.beat).ts >= $2 and (r.beat).ts < $3
        ),
        source as materialized (
          select b.device_id, date_bin('10 seconds', b.ts, timestamptz '2000-01-01 00:00:00+00') as bucket, b.ts, b.received_at,
            %1$s as checksum
          from (select (g.beat).* from given g) b
        ),
        store as materialized (
          select b.device_id, date_bin('10 seconds', b.ts, timestamptz '2000-01-01 00:00:00+00') as bucket, b.ts, b.received_at,
            %1$s as checksum
          from fleet.device_heartbeats b
          where b.ts >= $2 and b.ts < $3
        ),
        buckets as (
          select s.bucket::date as day, count(*) as rows, h.checksum as store_checksum,
            coalesce(max(s.checksum) filter (where s.checksum = h.checksum), min(s.checksum)) as source_checksum,
            case
              when h.checksum is null then 'missing'
              when bool_or(s.checksum = h.checksum) then 'kept'
              when bool_or(s.ts = h.ts and s.received_at = h.received_at) then 'changed'
              else 'foreign'  -- from the new server, which had the bucket first
            end as result
          from source s
          left join store h on h.device_id = s.device_id and h.bucket = s.bucket
          group by s.device_id, s.bucket, h.checksum
        ),
        days as materialized (
          select b.day,
            count(*) filter (where b.result = 'kept') as kept,
            sum(b.rows) - count(*) filter (where b.result <> 'foreign') as duplicate,
            count(*) filter (where b.result = 'missing') as missing,
            count(*) filter (where b.result = 'changed') as changed,
            count(*) filter (where b.result = 'foreign') as foreign_rows,
            sum(b.source_checksum) filter (where b.result <> 'foreign') as source_checksum,
            sum(b.store_checksum) filter (where b.result in ('kept', 'changed')) as store_checksum
          from buckets b
          group by b.day
        )
        update fleet.import_days d
        set rows_kept = coalesce(f.kept, 0), rows_duplicate = coalesce(f.duplicate, 0), rows_missing = coalesce(f.missing, 0),
          -- An imported row whose ts or received_at was changed looks as if it came from the new server. Such rows are found
          -- because fewer rows are left than were stored.
          rows_changed = coalesce(f.changed + greatest(least(f.foreign_rows, d.rows_stored - f.kept), 0), 0),
          source_checksum = coalesce(f.source_checksum, 0), store_checksum = coalesce(f.store_checksum, 0),
          checked_at = clock_timestamp()
        from fleet.import_days w
        left join days f on f.day = w.day
        where d.source = ($1).source and w.source = d.source and w.day = d.day
          and d.day >= $2::date and d.day < $3::date and d.checked_at is null
      $query$,
      fleet.checksum_expression('fleet.device_heartbeats')
    )
    using a, v_first::timestamptz, (v_last + 1)::timestamptz;
    update fleet.imports f
    set step_done = f.step_done + v_rows, step_rows = f.step_rows + v_rows
    where f.source = a.source;
    return true;
  end if;

  select sum(d.rows_kept), count(*) filter (
    where d.rows_missing > 0 or d.rows_changed > 0 or d.source_checksum <> d.store_checksum
  )
  into v_rows, v_bad
  from fleet.import_days d
  where d.source = a.source and d.checked_at is not null;
  update fleet.imports f
  set state = case when v_bad = 0 then 'verified' else 'moved' end, verified_at = clock_timestamp()
  where f.source = a.source;
  perform fleet.record_event(
    'import.verified', p_is_ok => v_bad = 0, p_rows => v_rows,
    p_detail => format(
      '%s: %s', a.source, case when v_bad = 0 then 'no difference' else format('differences on %s days', v_bad) end
    )
  );
  return false;
end
$$;

comment on function fleet.verify_days(fleet.imports, integer) is
  'Compares the next days of a table that is being imported with the store, row by row and by a checksum over all rows; after '
  'the last day, sets the state to verified or, if there are differences, to moved. False when nothing is left to compare.';
--! EndIncluded import/verify_days.sql
--! Included import/verify_import.sql
create or replace procedure fleet.verify_import(p_source regclass, inout p_state text default null)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;
  v_source := fleet.begin_verification(p_source);
  commit;
  call fleet.run_import(v_source, 5000, '0', p_state);
  if p_state <> 'verified' then
    raise warning using
      message = pg_catalog.format('%s differs from the store', v_source),
      hint = pg_catalog.format(
        'See select * from fleet.import_days where rows_missing + rows_changed > 0; '
          'import what is missing: call fleet.import_table(%L);',
        v_source
      );
  end if;
end
$$;

comment on procedure fleet.verify_import(regclass, text) is
  'Compares an imported table with the store, day by day. For each row of the table the store has the same content, or another '
  'heartbeat of the same device and 10-second bucket, or the row was refused. Any other row is counted in fleet.import_days, and '
  'the state stays moved. Example: call fleet.verify_import(''public.device_heartbeats'');';
--! EndIncluded import/verify_import.sql
--! Included import/write_back_partition.sql
create or replace function fleet.write_back_partition(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  v_partition record;
  v_insert text;
  v_beat fleet.device_heartbeats;
  v_rows bigint := 0;
  v_failed bigint := 0;
  v_error text;
begin
  select p.partition_name, p.range_start, p.range_end into v_partition
  from fleet.attached_partitions() p
  where p.range_start > a.next_partition
  order by p.range_start
  limit 1;
  if not found then
    update fleet.imports f
    set state = 'abandoned', abandoned_at = clock_timestamp()
    where f.source = a.source;
    delete from fleet.import_ranges r where r.source = a.source;
    perform fleet.record_event(
      'import.abandoned', p_rows => a.rows_written_back, p_is_ok => a.rows_not_written_back = 0,
      p_detail => format('%s: %s written back, %s refused by the table', a.source, a.rows_written_back, a.rows_not_written_back)
    );
    return false;
  end if;

  if exists (
    select from fleet.device_heartbeats h
    where h.ts >= v_partition.range_start and h.ts < v_partition.range_end and h.received_at >= a.started_at
  ) then
    select format(
      $query$
        insert into %s (%s)
        select %s
        from {beats} h
        left join fleet.devices d on d.device_id = h.device_id
        left join lateral (
          select min(n.source_device) as source_device
          from fleet.import_devices n
          where n.source = %L and n.device_id = h.device_id
        ) m on true
      $query$,
      a.source,
      string_agg(format('%I', k.value), ', ' order by k.key),
      string_agg(
        case k.key
          when 'device_id' then format(
            'coalesce(m.source_device, %s h.device_id::text)::%s',
            case when a.match_by <> 'device_id' then 'd.alias,' end,
            format_type(t.atttypid, null)
          )
          -- A plain cast of inet to text would add a mask.
          when 'ip' then format('abbrev(h.ip)::%s', format_type(t.atttypid, null))
          else format('h.%I::%s', k.key, format_type(t.atttypid, null))
        end,
        ', ' order by k.key
      ),
      a.source
    )
    into v_insert
    from jsonb_each_text(a.columns) k
    join pg_attribute t on t.attrelid = a.relid and t.attname = k.value
    where k.value is not null;
    begin
      execute replace(v_insert, '{beats}', 'fleet.missing_heartbeats($1, $2, $3)')
      using a, v_partition.range_start, v_partition.range_end;
      get diagnostics v_rows = row_count;
    exception when data_exception or integrity_constraint_violation then
      -- One row that does not fit must not stop the others.
      for v_beat in select l.* from fleet.missing_heartbeats(a, v_partition.range_start, v_partition.range_end) l loop
        begin
          execute replace(v_insert, '{beats}', '(select ($1).*)') using v_beat;
          v_rows := v_rows + 1;
        exception when data_exception or integrity_constraint_violation then
          v_failed := v_failed + 1;
          v_error := sqlerrm;
        end;
      end loop;
    end;
  end if;

  if v_failed > 0 then
    perform fleet.record_event(
      'import.write_back', p_is_ok => false, p_rows => v_failed, p_partition => v_partition.partition_name,
      p_detail => format('refused by %s; the last error: %s', a.source, v_error)
    );
  end if;
  update fleet.imports f
  set next_partition = v_partition.range_start, step_done = f.step_done + 1, step_rows = f.step_rows + v_rows,
    rows_written_back = f.rows_written_back + v_rows, rows_not_written_back = f.rows_not_written_back + v_failed
  where f.source = a.source;
  return true;
end
$$;

comment on function fleet.write_back_partition(fleet.imports) is
  'Writes back into a table the heartbeats of the next partition that have arrived since the import began and that the table '
  'does not have; false when there is no further partition.';
--! EndIncluded import/write_back_partition.sql
--! Included status/record_last_status.sql
-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500. In device_id order, because otherwise concurrent
-- batches of the same devices deadlock.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The clock, not now(): heartbeats that fleet.roll_up() does not wait for have to be recorded as late.
  v_today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
begin
  with late as (
    insert into fleet.late_arrivals (device_id, day)
    select distinct n.device_id, (n.ts at time zone 'UTC')::date
    from new_rows n
    where n.ts < v_today
  )
  insert into fleet.device_last_status as ls (
    device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, status,
    is_silent
  )
  select distinct on (n.device_id)
    n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip,
    case when n.unity_running is false then 'unity_down' else 'ok' end,
    -- A fresh heartbeat removes the mark, a buffered old one does not. The value rarely changes, so the update stays HOT.
    n.ts < now() - interval '2 minutes'
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
      status = excluded.status,
      is_silent = excluded.is_silent
    -- A late arrival must not rewind a device.
    where ls.last_ts is null or ls.last_ts < excluded.last_ts;
  return null;
end
$$;

comment on function fleet.record_last_status() is
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device, and records '
  'heartbeats of past days in fleet.late_arrivals.';
--! EndIncluded status/record_last_status.sql
--! Included ingest/device_heartbeats.trigger.sql
create or replace trigger device_heartbeats_record_last_status
  after insert on fleet.device_heartbeats
  referencing new table as new_rows
  for each statement execute function fleet.record_last_status();

comment on trigger device_heartbeats_record_last_status on fleet.device_heartbeats is
  'Keeps fleet.device_last_status and fleet.late_arrivals up to date. Sees only the rows that are really stored.';
--! EndIncluded ingest/device_heartbeats.trigger.sql
--! Included ingest/ingest.sql
create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off  -- measured: JIT compilation cut the rate from 140 to 4 batches a second
as $$
#variable_conflict use_column
declare
  v_results text[];
  v_reasons text[];
  v_tss timestamptz[];
  v_device_ids bigint[];
begin
  if p_received_at > now() then
    perform fleet.not_in_future(p_received_at);
  end if;
  -- At most twice: a partition can be retired between the read of fleet.hb_partitions and the insert (23514).
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
      days as materialized (  -- bounds are UTC midnights, so a day is either wholly inside a partition or outside
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
              g.ts between g.oldest and g.newest  -- a refused heartbeat does not use up a bucket
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

  -- After the heartbeats and last status, in every batch: all batches take locks in the same order, so they do not deadlock.
  if array_position(v_results, null) is not null then
    v_results := fleet.quarantine(p_batch, p_received_at, v_device_ids, v_tss, v_reasons, v_results);
  end if;

  return query
    select u.item::integer, u.result, case u.result when 'rejected' then 'quarantine_full' else u.reason end, u.ts
    from unnest(v_results, v_reasons, v_tss) with ordinality as u (result, reason, ts, item);
end
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement. The batch is a JSON array of {device_id, ts, battery_pct, network_type, '
  'unity_running, signal_dbm, agent_version, ip}. Answers each item in order: stored, duplicate (same device and 10-second '
  'bucket), quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). '
  'Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded ingest/ingest.sql
--! Included ingest/quarantine.sql
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

  -- The mark comes last and does not wait: a row that another batch is writing is left to that batch.
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
  'Quarantines the refused items of a batch, and marks devices that sent nothing else. Returns the results, with those of the '
  'refused items filled in. Called by fleet.ingest().';
--! EndIncluded ingest/quarantine.sql
--! Included ingest/replay_quarantine.sql
-- Each batch goes through fleet.ingest() again, with the time at which it arrived. Heartbeats that are acceptable now (their
-- partition exists, or max_late was raised) are stored. The rest stays.
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
      hint = 'Give the first and the last ts, in order: select * from fleet.replay_quarantine(current_date - 3, current_date);';
  end if;
  stored := 0;
  duplicate := 0;
  remaining := 0;
  for v_batch in
    select q.received_at,
      -- The ts that was judged: if the payload has none, the time of arrival.
      json_agg(
        q.payload || jsonb_build_object('device_id', q.device_id, 'ts', q.ts) order by q.device_id, q.ts, q.reason
      ) as items,
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
  'Stores quarantined heartbeats, selected by ts, if their partition now exists (created or restored) and their lateness is now '
  'allowed. Returns how many were stored, how many were duplicates, and how many remain. '
  'Example: select * from fleet.replay_quarantine(current_date - 3, current_date);';
--! EndIncluded ingest/replay_quarantine.sql
--! Included jobs/audit_settings.sql
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

comment on function fleet.audit_settings() is 'Trigger on fleet.settings: records every change in fleet.settings_audit.';
--! EndIncluded jobs/audit_settings.sql
--! Included jobs/begin_run.sql
-- The steps are planned here, with the owner's rights, and a caller can only run the next one. So a role that may start a
-- night cannot choose the partition, the day or the time of a step.
create or replace function fleet.begin_run(p_kind text, p_retention interval default null, p_now timestamptz default now())
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint := hashtextextended('fleet.maintenance', 0);
  v_run_id bigint;
  v_holder integer;
  v_steps constant text[] := case p_kind
    -- Premake comes first and in its own transaction, because ingest depends on it. Each plan_ step is replaced by one step for
    -- each day or partition that it finds. Days are rolled up before their heartbeats are retired.
    when 'nightly' then array[
      'premake', 'refresh_sizes', 'plan_roll_up', 'plan_retire', 'tune_autovacuum', 'schedule_vacuum', 'prune', 'note_storage',
      'retry_failed_archives', 'wake_archiver'
    ]
    when 'maintain' then array['premake', 'plan_rebuild']
  end;
begin
  if v_steps is null then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a kind of maintenance', coalesce(p_kind, 'null')),
      hint = 'The kinds are nightly and maintain.';
  end if;
  if not exists (
    select from pg_trigger where tgrelid = to_regclass('fleet.hb_partitions') and tgname = 'hb_partitions_protect'
  ) then
    raise exception using
      errcode = 'FL002',
      message = 'fleet.hb_partitions has no trigger hb_partitions_protect: a restore of a dump is running or was not completed',
      hint = 'Wait for the restore to finish. If none is running, restore the dump again into an empty database.';
  end if;
  perform fleet.not_in_future(p_now);
  if not pg_has_role(session_user, 'fleet_owner', 'member') then
    p_now := now();  -- other roles cannot choose a time in the past either
  end if;
  if p_retention < interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('retention %s is less than 1 day: days to which devices still send would be retired', p_retention),
      hint = 'First see what would happen: select * from fleet.nightly_plan(''60 days''); then: '
        'call fleet.nightly(null, ''60 days'');';
  end if;
  -- A session lock, because it has to outlive the transactions of the run.
  if not pg_try_advisory_lock(v_key) then
    v_holder := (select h from fleet.lock_holders('maintenance') h);
    raise exception using
      errcode = 'FL003',
      message = format('maintenance is already running in backend %s', v_holder),
      hint = 'Wait for it. If it is stuck: select * from fleet.force_unlock(''maintenance''); the next run continues from there.';
  end if;
  begin
    -- Before any step that could act on the wrong table.
    perform fleet.relink_tables();
    v_run_id := nextval('fleet.run_id_seq');
    -- A run that was killed may have left steps; this run makes its own plan.
    delete from fleet.planned_steps;
    insert into fleet.planned_steps (run_id, position, step, retention, as_of, pid)
    select v_run_id, s.position * 1000000, s.step, p_retention, p_now, pg_backend_pid()
    from unnest(v_steps) with ordinality as s (step, position);
    perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => session_user::text);
  exception when others or query_canceled then
    -- The session may stay in a pool and would keep the lock.
    perform pg_advisory_unlock(v_key);
    raise;
  end;
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text, interval, timestamptz) is
  'Begins a run of maintenance (nightly or maintain): takes the lock, or names the session that holds it, numbers the run and '
  'plans its steps.';
--! EndIncluded jobs/begin_run.sql
--! Included jobs/do_step.sql
create or replace function fleet.do_step(p_step text, p_partition text, p_now timestamptz, p_day date default null)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  case p_step
    when 'premake' then
      v_count := (select count(*) from fleet.premake(p_now));
    when 'refresh_sizes' then
      v_count := fleet.refresh_sizes(p_now);
    when 'tune_autovacuum' then
      v_count := fleet.tune_autovacuum(p_now);
    when 'schedule_vacuum' then
      v_count := fleet.schedule_vacuum();
    when 'roll_up' then
      v_count := fleet.roll_up(p_day, p_now);
    when 'rebuild' then
      v_count := fleet.roll_up(p_day, p_now, p_late_only => true);
    when 'retire' then
      v_count := fleet.retire_partition(p_partition, p_now);
    when 'prune' then
      v_count := fleet.prune(p_now);
    when 'note_storage' then
      v_count := fleet.note_storage(p_now);
    when 'retry_failed_archives' then
      v_count := fleet.retry_failed_archives();
    when 'wake_archiver' then
      v_count := fleet.wake_archiver('nightly')::integer;
  end case;
  return v_count;
end
$$;

comment on function fleet.do_step(text, text, timestamptz, date) is
  'Runs one step of maintenance by its name; returns the number of partitions or rows that it handled.';
--! EndIncluded jobs/do_step.sql
--! Included jobs/elapsed_ms.sql
create or replace function fleet.elapsed_ms(p_since timestamptz) returns bigint
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select (extract(epoch from clock_timestamp() - p_since) * 1000)::bigint;
$$;

comment on function fleet.elapsed_ms(timestamptz) is 'Milliseconds from the given time until now, by the clock.';
--! EndIncluded jobs/elapsed_ms.sql
--! Included jobs/end_overdue_readers.sql
create or replace function fleet.end_overdue_readers() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_reader record;
  v_count integer := 0;
begin
  -- The administrator created it at setup, because the owner may not end sessions.
  if to_regprocedure('fleet_guard.end_overdue_readers(interval, interval, interval)') is null then
    return 0;
  end if;
  for v_reader in execute 'select * from fleet_guard.end_overdue_readers()' loop
    perform fleet.record_event(
      'reader.ended', p_is_ok => v_reader.is_ended,
      p_detail => format('backend %s of %s: %s', v_reader.pid, v_reader.usename, v_reader.reason)
    );
    v_count := v_count + 1;
  end loop;
  return v_count;
exception when insufficient_privilege then
  -- The administrator who ran setup may not end sessions. A warning, because the caller has other work to do.
  raise warning using message = format('sessions of readers beyond their time limits cannot be ended: %s', sqlerrm),
    hint = 'As superuser: psql -f sql/setup/public.sql';
  return 0;
end
$$;

comment on function fleet.end_overdue_readers() is
  'Ends sessions of fleet_reader that raised their time limits and exceeded the original ones, and records an event reader.ended '
  'for each; returns how many. Run each minute by fleet.mark_silent(). Example: select fleet.end_overdue_readers();';
--! EndIncluded jobs/end_overdue_readers.sql
--! Included jobs/end_run.sql
create or replace function fleet.end_run(p_run_id bigint) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_start fleet.events;
  v_failed integer;
begin
  select e.* into v_start
  from fleet.events e
  where e.run_id = p_run_id and e.event in ('nightly.start', 'maintain.start')
    and exists (select from fleet.lock_holders('maintenance') h where h = pg_backend_pid());
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('maintenance run %s is not running in this session', coalesce(p_run_id::text, 'null')),
      hint = 'call fleet.nightly(); and call fleet.maintain(); begin and end their runs themselves.';
  end if;
  v_failed := (
    select count(*) from fleet.events e where e.run_id = p_run_id and e.event like 'maintenance.%' and not e.is_ok
  );
  delete from fleet.planned_steps s where s.run_id = p_run_id;
  perform fleet.record_event(
    split_part(v_start.event, '.', 1) || '.end', p_run_id => p_run_id, p_is_ok => v_failed = 0,
    p_detail => case when v_failed > 0 then format('%s steps failed', v_failed) end,
    p_duration_ms => fleet.elapsed_ms(v_start.at)
  );
  perform pg_advisory_unlock(hashtextextended('fleet.maintenance', 0));
  if v_failed > 0 then
    raise warning using
      message = format('%s steps of run %s failed', v_failed, p_run_id),
      hint = format('See select * from fleet.run_steps(%s) where not ok;', p_run_id);
  end if;
end
$$;

comment on function fleet.end_run(bigint) is
  'Ends a run of maintenance in this session: records the result and releases the lock.';
--! EndIncluded jobs/end_run.sql
--! Included jobs/force_unlock.sql
-- Runs with the rights of the caller, so pg_signal_backend decides which sessions may be ended. (pg_advisory_unlock_all() would
-- release only the caller's own locks.)
create or replace function fleet.force_unlock(p_lock text default 'maintenance')
returns table (pid integer, usename text, running interval, query text, is_ended boolean)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if p_lock is null or p_lock not in ('maintenance', 'reconcile', 'import') then
    raise exception using
      errcode = 'FL422',
      message = format('there is no lock %s', coalesce(p_lock, 'null')),
      hint = 'The locks are maintenance, reconcile and import: select * from fleet.force_unlock(''maintenance'');';
  end if;
  return query
    select a.pid, a.usename::text, date_trunc('second', now() - a.query_start), a.query,
      -- Waits for the end, so that the caller can start at once.
      pg_terminate_backend(a.pid, 5000)
    from fleet.lock_holders(p_lock) h
    join pg_stat_activity a on a.pid = h
    where h <> pg_backend_pid();
end
$$;

comment on function fleet.force_unlock(text) is
  'Ends the backend that holds the lock of a stuck maintenance, reconcile or import, and returns which it was. Its open '
  'transaction is rolled back, and the next run continues from there. Example: select * from '
  'fleet.force_unlock(''maintenance'');';
--! EndIncluded jobs/force_unlock.sql
--! Included jobs/is_night_missed.sql
create or replace function fleet.is_night_missed(p_now timestamptz default now()) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.not_in_future(p_now);
  return not exists (
      select from fleet.events e
      where e.event = 'nightly.start' and e.at > p_now - interval '25 hours'
    )
    -- In a new store the first night is still to come.
    and exists (select from fleet.hb_partitions p where p.created_at <= p_now - interval '25 hours');
end
$$;

comment on function fleet.is_night_missed(timestamptz) is
  'True if fleet.nightly() has not begun for 25 hours. fleet.maintain() then runs it.';
--! EndIncluded jobs/is_night_missed.sql
--! Included jobs/maintain.sql
create or replace procedure fleet.maintain(inout p_run_id bigint default null, p_now timestamptz default now())
language plpgsql
as $$
declare
  v_nightly bigint;
begin
  p_run_id := fleet.begin_run('maintain', null, p_now);
  commit;
  call fleet.run_planned_steps(p_run_id);
  perform fleet.end_run(p_run_id);
  commit;
  -- Postgres or pg_cron was down at 03:00.
  if fleet.is_night_missed(p_now) then
    call fleet.nightly(v_nightly, null, p_now);
  end if;
end
$$;

comment on procedure fleet.maintain(bigint, timestamptz) is
  'Creates partitions ahead, recounts the availability of devices with late heartbeats, and runs fleet.nightly() if a night was '
  'missed. Run hourly by pg_cron; safe at any time. Example: call fleet.maintain();';
--! EndIncluded jobs/maintain.sql
--! Included jobs/nightly.sql
create or replace procedure fleet.nightly(
  inout p_run_id bigint default null,
  p_retention interval default null,
  p_now timestamptz default now()
)
language plpgsql
as $$
begin
  p_run_id := fleet.begin_run('nightly', p_retention, p_now);
  commit;
  call fleet.run_planned_steps(p_run_id);
  perform fleet.end_run(p_run_id);
end
$$;

comment on procedure fleet.nightly(bigint, interval, timestamptz) is
  'The nightly maintenance, each step in its own transaction: creates partitions ahead, measures sizes, rolls up availability, '
  'retires partitions past the retention, sets autovacuum by age, prunes, and wakes the archiver. Returns its run_id for '
  'fleet.run_steps(). For a dry run: select * from fleet.nightly_plan(). Example: call fleet.nightly();';
--! EndIncluded jobs/nightly.sql
--! Included status/mark_silent.sql
-- Devices become silent because time passes, so no heartbeat can mark them. They are marked early, at three quarters of the time
-- after which they are offline, so that between two runs no device is offline without the mark. Queries that use the mark
-- always compare with the clock again.
create or replace procedure fleet.mark_silent(p_max_rows integer default 50000, p_now timestamptz default now())
language plpgsql
as $$
declare
  c_batch constant integer := 5000;
  v_base interval;
  v_changes bigint;
  v_rows integer;
  v_left integer := p_max_rows;
begin
  perform fleet.end_overdue_readers();
  commit;
  select greatest(least(s.offline_after, interval '10 minutes'), interval '5 minutes'), m.changes
  into v_base, v_changes
  from fleet.settings s
  cross join fleet.silence_marks m;
  loop
    -- In device_id order, as in ingest. A batch is a short transaction, because a device that comes back waits for it.
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = true
    from (
      select l.device_id
      from fleet.device_last_status l
      where not l.is_silent and l.last_ts < p_now - v_base * 0.75
        and l.last_ts < p_now - 1.5 * (select d.heartbeat_interval from fleet.devices d where d.device_id = l.device_id)
      order by l.device_id
      limit least(c_batch, v_left)
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  -- At the limit the marks are incomplete, and reads continue without them. That suits a fleet that is mostly silent.
  if v_left > 0 then
    update fleet.silence_marks m
    set marked_at = p_now, base = v_base
    where m.changes = v_changes;
  end if;
  commit;

  -- Remove marks that no heartbeat removed, because they were set as a precaution.
  loop
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = false
    from (
      select l.device_id
      from fleet.device_last_status l
      where l.is_silent and (l.last_ts is null or l.last_ts >= p_now - interval '2 minutes')
      order by l.device_id
      limit least(c_batch, greatest(v_left, 0))
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  commit;

  perform fleet.watch_silence(p_now);
  commit;

  perform fleet.sample_fleet();
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'Sets device_last_status.is_silent for devices that have been silent for three quarters of the time after which they are '
  'offline, so that lists of offline devices need not look at the others. Run every minute by pg_cron. If it does not run, '
  'lists are still right, but slower. Also calls fleet.end_overdue_readers(), fleet.watch_silence() and fleet.sample_fleet(). '
  'Example: call fleet.mark_silent();';
--! EndIncluded status/mark_silent.sql
--! Included status/reconcile.sql
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
      message = format(
        'cannot reconcile a window of %s and %s rows', coalesce(p_window::text, 'null'), coalesce(p_max_rows::text, 'null')
      ),
      hint = 'Both must be positive. Example: select * from fleet.reconcile(''24 hours'', 5000);';
  end if;
  select h.checked, h.updated into checked, updated from fleet.heal_last_status(p_window, p_max_rows) h;
  elapsed_ms := fleet.elapsed_ms(v_since);
  perform fleet.increment_counter('reconciliation_rows_updated_total', updated);
  perform fleet.record_event('reconciliation.completed', p_rows => updated, p_duration_ms => elapsed_ms);
end
$$;

comment on function fleet.reconcile(interval, integer) is
  'Repairs last status where it is behind the stored heartbeats of a window; the newest heartbeat wins. What exceeds p_max_rows '
  'is left to the next run, which continues from there. Run hourly. '
  'Example: select * from fleet.reconcile();';
--! EndIncluded status/reconcile.sql
--! Included jobs/job_definitions.sql
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
      or p.state not in ('active', 'restored') and age(c.relfrozenxid) > coalesce(age(p.cold_xid), 1000000))
    and pg_relation_size(c.oid) > 0
  having count(*) > 0;
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron runs for the store, with their schedules in GMT. A job is late when its last success is older than '
  'max_age. fleet-freeze is listed only while a cold partition is not frozen yet.';
--! EndIncluded jobs/job_definitions.sql
--! Included jobs/job_history.sql
create or replace function fleet.job_history()
returns table (
  jobname text, schedule text, max_age interval, is_active boolean, last_start timestamptz, last_status text, last_message text,
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
      select d.jobname, d.schedule, d.max_age, null::boolean, null::timestamptz, null::text, null::text, null::timestamptz
      from fleet.job_definitions() d;
    return;
  end if;
  -- The history has no index on jobid, so it is read once for all jobs.
  return query execute $history$
    select d.jobname, d.schedule, d.max_age, j.active, h.start_time, h.status, h.return_message, r.last_success
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user and j.database = current_database()
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
  'Each expected pg_cron job with its last run and last success, which are null if it is not scheduled in this database.';
--! EndIncluded jobs/job_history.sql
--! Included jobs/postgres_started_at.sql
create or replace function fleet.postgres_started_at() returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select pg_postmaster_start_time();
$$;

comment on function fleet.postgres_started_at() is
  'When Postgres started. No job is late because it did not run before. Example: select now() - fleet.postgres_started_at();';
--! EndIncluded jobs/postgres_started_at.sql
--! Included jobs/job_health.view.sql
-- The age of a job counts from its last success or from the start of Postgres, whichever is later: nothing runs while it is down.
create or replace view fleet.job_health as
select h.jobname, h.schedule,
  case
    when h.is_active is null then 'missing'
    when not h.is_active then 'disabled'
    when h.last_start is null then 'waiting'
    when h.last_status = 'failed' then 'failed'
    when h.last_success is null or now() - greatest(h.last_success, fleet.postgres_started_at()) > h.max_age then 'late'
    else 'ok'
  end as status,
  h.last_start, h.last_status, h.last_message, h.last_success
from fleet.job_history() h
order by h.jobname;

comment on view fleet.job_health is
  'The pg_cron jobs of the store: ok, waiting (has never run), late, failed, disabled or missing. Example: select * from '
  'fleet.job_health where status <> ''ok'';';
--! EndIncluded jobs/job_health.view.sql
--! Included jobs/jobs_elsewhere.sql
create or replace function fleet.jobs_elsewhere()
returns table (jobname text, statement text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The name contains this database: pg_cron identifies a job by name and role, which other stores of the cluster share.
  select d.jobname, case d.jobname
    -- The history is in the database of pg_cron.
    when 'fleet-prune-cron-history' then format(
      'select cron.schedule(%L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      format(
        '%swhere database = %L and (%s)',
        split_part(d.command, 'where', 1), current_database(), trim(split_part(d.command, 'where', 2))
      )
    )
    else format(
      'select cron.schedule_in_database(%L, %L, %L, %L, %L);', d.jobname || '@' || current_database(), d.schedule,
      -- There, the statement is not updated each night, so partitions are left to autovacuum.
      case d.jobname when 'fleet-vacuum' then 'vacuum (analyze) fleet.device_last_status' else d.command end,
      current_database(), 'fleet_owner'
    )
  end
  from fleet.job_definitions() d
  where d.jobname <> 'fleet-freeze';
$$;

comment on function fleet.jobs_elsewhere() is
  'If pg_cron is in another database: the statement with which a superuser schedules each job there.';
--! EndIncluded jobs/jobs_elsewhere.sql
--! Included partitions/attached_partitions.sql
-- The catalog alone decides what is a partition. Names are not parsed, because pg_partman 4 and 5 name partitions differently.
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
  'The partitions that are attached to fleet.device_heartbeats, with their bounds, from the catalog.';
--! EndIncluded partitions/attached_partitions.sql
--! Included partitions/release_partition.sql
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
  -- A restored day becomes active again. If it is old enough, the next nightly run retires it, and its archive is proven again.
  update fleet.hb_partitions
  set held_reason = null, held_by = null, state = case state when 'restored' then 'active' else state end
  where partition_name = p_partition;
  perform fleet.record_event('partition.release', p_partition);
  return format('partition %s is released', p_partition);
end
$$;

comment on function fleet.release_partition(text) is
  'Ends the hold of a partition, or the stay of a restored day. '
  'Example: select fleet.release_partition(partition_name) from fleet.partition_health where held_reason = ''legal hold'';';
--! EndIncluded partitions/release_partition.sql
--! Included partitions/retention_plan.sql
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
    pg_total_relation_size(c.oid),
    case
      when p.range_end > p_now - r.retention then 'keep'
      when p.held_reason is not null or p.state = 'restored' or h.source is not null then 'hold'
      else 'retire'
    end,
    case
      when p.range_end > p_now - r.retention and p.range_start > p_now then 'created ahead of time'
      when p.range_end > p_now - r.retention then format('not entirely older than %s', r.retention)
      when p.held_reason is not null then format('held: %s', p.held_reason)
      when h.source is not null then format('%s is being imported; confirm or abandon the import', h.source)
      when p.state = 'restored' then 'restored from the archive; release it with fleet.release_partition()'
      else format('all of it is older than %s', r.retention)
    end
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  cross join (
    select coalesce(p_retention, s.retention) as retention
    from fleet.settings s
    where fleet.not_in_future(p_now) is not null
  ) r
  left join lateral (
    select min(o.source) as source from fleet.import_holds() o where o.since < p.range_end
  ) h on true
  where p.state in ('active', 'restored')
  order by p.range_start;
$$;

comment on function fleet.retention_plan(interval, timestamptz) is
  'What a retention would do with each partition, and why; changes nothing. '
  'Example: select * from fleet.retention_plan(''60 days'') where action = ''retire'';';
--! EndIncluded partitions/retention_plan.sql
--! Included jobs/nightly_plan.sql
create or replace function fleet.nightly_plan(p_retention interval default null, p_now timestamptz default now())
returns table (step text, partition_name text, detail text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  (
    select 'premake', null::text, format('create the partition of %s', d.day::date)
    from fleet.settings s
    cross join generate_series(
      fleet.not_in_future(p_now)::date::timestamptz, p_now::date + s.premake_days * interval '1 day', interval '1 day'
    ) as d (day)
    where not exists (
      select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day
    )
    order by d.day
  )
  union all
  (
    select 'roll_up', r.partition_name, format('roll up %s', r.day)
    from fleet.rollup_plan(p_now) r
    where r.action = 'roll_up' and r.state in ('active', 'restored')
    order by r.day
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
  'The dry run of fleet.nightly(): what it would create, roll up, retire and leave to the archiver. Changes nothing. Example: '
  'select * from fleet.nightly_plan(''60 days'');';
--! EndIncluded jobs/nightly_plan.sql
--! Included jobs/prune.sql
create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_quarantined bigint;
  v_events bigint;
  v_commands bigint;
  v_dispatches bigint;
  v_rollups bigint;
begin
  delete from fleet.heartbeat_quarantine q
  using fleet.settings s
  where q.received_at < p_now - s.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  using fleet.settings s
  where e.at < p_now - s.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.device_commands c
  using fleet.settings s
  where c.created_at < p_now - s.commands_keep;
  get diagnostics v_commands = row_count;
  delete from fleet.command_dispatch_log l
  using fleet.settings s
  where l.at < p_now - s.commands_keep;
  get diagnostics v_dispatches = row_count;
  delete from fleet.device_availability_daily a
  using fleet.settings s
  where a.day < p_now - greatest(s.rollups_keep, s.retention);
  get diagnostics v_rollups = row_count;
  delete from fleet.rolled_up_days r
  using fleet.settings s
  where r.day < p_now - greatest(s.rollups_keep, s.retention);
  delete from fleet.late_arrivals l
  using fleet.settings s
  where l.day < p_now - greatest(s.rollups_keep, s.retention);
  delete from fleet.storage_daily d
  using fleet.settings s
  where d.day < p_now - s.rollups_keep;
  delete from fleet.token_change_log l
  where l.changed_at < p_now - interval '7 days';
  delete from fleet.cohorts c
  where c.min_interval is null and c.changed_at < p_now - interval '7 days';
  delete from fleet.slo_counts c
  where c.minute < p_now - interval '7 days';
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches + v_rollups;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Deletes quarantined heartbeats, events, commands and rollups that are older than their settings; returns how many. Run by '
  'fleet.nightly().';
--! EndIncluded jobs/prune.sql
--! Included jobs/record_event.sql
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
    -- A procedure sets its run for the functions that it calls; see fleet.run_next_step().
    coalesce(p_run_id, nullif(current_setting('fleet.run_id', true), '')::bigint)
  );
$$;

comment on function fleet.record_event(text, text, bigint, bigint, text, boolean, bigint) is
  'Adds a row to fleet.events.';
--! EndIncluded jobs/record_event.sql
--! Included jobs/run_next_step.sql
create or replace function fleet.run_next_step(p_run_id bigint, p_attempt integer default 1) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_next fleet.planned_steps;
  v_since timestamptz := clock_timestamp();
  v_count bigint;
  v_error text;
begin
  loop
    select s.* into v_next
    from fleet.planned_steps s
    -- Only in the session that planned the steps and still holds the lock.
    where s.run_id = p_run_id and s.pid = pg_backend_pid()
      and exists (select from fleet.lock_holders('maintenance') h where h = pg_backend_pid())
    order by s.position
    limit 1;
    if not found then
      return 'over';
    end if;
    exit when v_next.step not like 'plan\_%';

    insert into fleet.planned_steps (run_id, position, step, partition_name, day, retention, as_of, pid)
    select p_run_id, v_next.position + d.position, d.step, d.partition_name, d.day, v_next.retention, v_next.as_of, v_next.pid
    from (
      select r.action as step, r.partition_name, r.day, row_number() over (order by r.day) as position
      from fleet.rollup_plan(v_next.as_of) r
      where v_next.step = 'plan_' || r.action and r.state in ('active', 'restored')
      union all
      select 'retire', r.partition_name, null, row_number() over (order by r.range_start)
      from fleet.retention_plan(v_next.retention, v_next.as_of) r
      where v_next.step = 'plan_retire' and r.action = 'retire'
    ) d;
    delete from fleet.planned_steps s where s.run_id = p_run_id and s.position = v_next.position;
  end loop;

  begin
    perform set_config('fleet.run_id', p_run_id::text, true);
    v_count := fleet.do_step(v_next.step, v_next.partition_name, v_next.as_of, v_next.day);
  exception when others then
    v_error := sqlerrm;
  end;
  -- pg_partman reports a lock timeout under another error code, so its message decides.
  if v_error like '%lock timeout%' and p_attempt < 5 then
    return 'busy';
  end if;

  if v_error is not null and v_next.step = 'premake' then
    perform fleet.increment_counter('partition_create_failures_total');
  end if;
  perform fleet.record_event(
    'maintenance.' || v_next.step, v_next.partition_name, v_count, fleet.elapsed_ms(v_since),
    nullif(concat_ws(': ', v_next.day, v_error), ''), v_error is null, p_run_id
  );
  delete from fleet.planned_steps s where s.run_id = p_run_id and s.position = v_next.position;
  return case when v_error is null then 'done' else 'failed' end;
end
$$;

comment on function fleet.run_next_step(bigint, integer) is
  'Runs the next step that fleet.begin_run() planned for this run in this session, and records it in fleet.events. Returns done, '
  'failed, over (no step is left) or busy (a lock was not available: commit, wait and call again).';
--! EndIncluded jobs/run_next_step.sql
--! Included jobs/run_planned_steps.sql
-- A procedure that commits can have neither SET nor SECURITY DEFINER, so the functions that it calls have them.
create or replace procedure fleet.run_planned_steps(p_run_id bigint)
language plpgsql
as $$
declare
  v_outcome text;
  v_attempt integer := 1;
begin
  loop
    v_outcome := fleet.run_next_step(p_run_id, v_attempt);
    commit;
    exit when v_outcome = 'over';
    if v_outcome = 'busy' then
      -- Usually a long query over the whole parent holds the lock. Wait a moment outside of a transaction and try again.
      perform pg_catalog.pg_sleep(0.2 * v_attempt);
      commit;
      v_attempt := v_attempt + 1;
    else
      v_attempt := 1;
    end if;
  end loop;
end
$$;

comment on procedure fleet.run_planned_steps(bigint) is
  'Runs the steps of a maintenance run, each in its own transaction. A step is retried while locks are busy and recorded in '
  'fleet.events, and its failure does not stop the others.';
--! EndIncluded jobs/run_planned_steps.sql
--! Included jobs/run_steps.sql
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
  'What one run of fleet.nightly() or fleet.maintain() did. Example: call fleet.nightly(); then, with the run_id that it '
  'returns: select * from fleet.run_steps(1);';
--! EndIncluded jobs/run_steps.sql
--! Included jobs/schedule_jobs.sql
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
    for v_job in select * from fleet.jobs_elsewhere() loop
      raise notice using
        message = format('job %s is not scheduled: pg_cron is not in this database', v_job.jobname),
        hint = format(
          'As superuser, in the database of pg_cron (cron.database_name, %s): %s',
          -- Not current_setting(), which fails for roles that may not see the setting.
          coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'unknown here'), v_job.statement
        );
    end loop;
    return query select d.jobname, d.schedule, d.command, false from fleet.job_definitions() d;
    return;
  end if;

  -- By name, so that a second call changes nothing. The store's jobs that are no longer defined are removed.
  execute $jobs$
    select cron.unschedule(j.jobid)
    from cron.job j
    where j.jobname like 'fleet-%' and j.username = current_user
      and case
        -- They came with a dump of a database with another name or port and still connect there. schedule() changes neither.
        when (j.database, j.nodeport) <> (current_database(), current_setting('port')::integer) then
          j.jobname in (select d.jobname from fleet.job_definitions() d)
        else j.jobname not in (select d.jobname from fleet.job_definitions() d)
      end
  $jobs$;
  for v_job in select * from fleet.job_definitions() loop
    execute 'select cron.schedule($1, $2, $3)' using v_job.jobname, v_job.schedule, v_job.command;
  end loop;
  return query select d.jobname, d.schedule, d.command, true from fleet.job_definitions() d;
end
$$;

comment on function fleet.schedule_jobs() is
  'Schedules the jobs of fleet.job_definitions() with pg_cron, as their owner; may be called again. If pg_cron is in another '
  'database, notices say what to run there. Example: select * from fleet.schedule_jobs();';
--! EndIncluded jobs/schedule_jobs.sql
--! Included jobs/scheduler_ages.sql
-- Does not use fleet.job_history(): it reads the whole history for the last success of each job, which is too much for a scrape.
create or replace function fleet.scheduler_ages()
returns table (jobname text, age interval)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_setup timestamptz := (select min(p.created_at) from fleet.hb_partitions p);
  v_known text[] := array[]::text[];
begin
  if exists (select from pg_extension where extname = 'pg_cron') then
    for jobname, age in execute $jobs$
      select j.jobname, now() - greatest(d.start_time, fleet.postgres_started_at())
      from cron.job j
      cross join lateral (select h.start_time from cron.job_run_details h where h.jobid = j.jobid order by h.runid desc limit 1) d
      where j.jobname like 'fleet-%' and j.username = current_user and d.start_time is not null
    $jobs$ loop
      v_known := v_known || jobname;
      return next;
    end loop;
  end if;
  -- If pg_cron is in another database, or lost a job or its history, the events of the jobs give their ages. These jobs have been
  -- there since setup, so one that never ran is as old as the store.
  return query
    select w.jobname, now() - coalesce(
      case when l.at is not null then greatest(l.at, fleet.postgres_started_at()) end,
      v_setup
    )
    from (
      values
        ('fleet-maintain', 'maintain.start'), ('fleet-nightly', 'nightly.start'), ('fleet-reconcile', 'reconciliation.completed')
    ) as w (jobname, event)
    cross join lateral (select max(e.at) as at from fleet.events e where e.event = w.event) l
    where w.jobname <> all (v_known);
end
$$;

comment on function fleet.scheduler_ages() is
  'How long ago each job of the store began, or Postgres started if that was later. If maintain, nightly or reconcile has never '
  'begun, the time since setup. For /metrics.';
--! EndIncluded jobs/scheduler_ages.sql
--! Included jobs/settings.trigger.sql
create or replace trigger settings_audit
  after update on fleet.settings
  for each row execute function fleet.audit_settings();

comment on trigger settings_audit on fleet.settings is 'Records every change in fleet.settings_audit.';
--! EndIncluded jobs/settings.trigger.sql
--! Included metrics/increment_counter.sql
create or replace function fleet.increment_counter(p_counter text, p_by numeric default 1) returns void
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

comment on function fleet.increment_counter(text, numeric) is 'Adds to a total in fleet.counters.';
--! EndIncluded metrics/increment_counter.sql
--! Included silence/silence_at.sql
create or replace function fleet.silence_at(p_now timestamptz)
returns table (
  cohort text, devices bigint, active bigint, gone_quiet bigint, share double precision, usual_share double precision,
  ratio double precision, is_alarming boolean, is_muted boolean, muted_reason text, window_start timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with ingest as materialized (
    select
      case
        when fleet.is_ingest_down(
          (select max(l.last_received_at) from fleet.device_last_status l), fleet.not_in_future(p_now)
        ) then 'ingest_down'
        when p_now < w.gap_to + s.silence_window or w.gap_from is not null and w.gap_to is null
          or pg_postmaster_start_time() > w.looked_at then 'ingest_resumed'
        when w.looked_at < p_now - s.ingest_gap then 'unwatched'
      end as muted_reason,
      -- Devices that fell silent while ingest was down have not been counted yet, so the window includes the gap once more.
      least(case when p_now < w.gap_to + 2 * s.silence_window then w.gap_from end, p_now - s.silence_window) as window_start
    from fleet.settings s
    cross join fleet.silence_watch w
  ),
  -- How long each device is overdue. OFFSET 0 has it computed once.
  heard as (
    select d.cohort,
      -- A heartbeat that is refused for its time still shows that the device sends.
      p_now - case when ls.status = 'clock_skewed' then ls.last_received_at else ls.last_ts end - fleet.late_after(
        fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now)
      ) as overdue
    from fleet.devices d
    left join fleet.device_last_status ls using (device_id)
    left join fleet.cohorts c on c.cohort = d.cohort
    where d.revoked_at is null
    offset 0
  ),
  counted as (
    select h.cohort, count(*) as devices,
      count(*) filter (where h.overdue <= (select p_now - i.window_start from ingest i)) as active,
      count(*) filter (
        where h.overdue > interval '0' and h.overdue <= (select p_now - i.window_start from ingest i)
      ) as gone_quiet
    from heard h
    group by h.cohort
  ),
  summed as (
    select coalesce(k.cohort, '(all)') as cohort, grouping(k.cohort) as is_all,
      coalesce(sum(k.devices), 0)::bigint as devices, coalesce(sum(k.active), 0)::bigint as active,
      coalesce(sum(k.gone_quiet), 0)::bigint as gone_quiet
    from counted k
    group by grouping sets ((k.cohort), ())
  )
  select m.cohort, m.devices, m.active, m.gone_quiet, r.share, u.usual_share, r.share / nullif(u.usual_share, 0),
    r.muted_reason is null and m.gone_quiet >= s.silence_min_devices and r.share >= s.silence_share
      and r.share >= s.silence_ratio * u.usual_share,
    r.muted_reason is not null, r.muted_reason, i.window_start
  from summed m
  cross join ingest i
  cross join fleet.settings s
  left join fleet.silence_usual u on u.cohort = m.cohort
  cross join lateral (
    select m.gone_quiet / nullif(m.active, 0)::double precision as share,
      case
        when i.muted_reason is not null then i.muted_reason
        when m.active < s.silence_min_devices then 'few_devices'
        -- 144 samples are a day. Before that, what is usual at night is unknown.
        when u.usual_share is null or u.samples < 144 then 'few_samples'
      end as muted_reason
  ) r
  order by m.is_all desc, m.cohort;
$$;

comment on function fleet.silence_at(timestamptz) is
  'fleet.fleet_silence at a given time, from what is known now. Defined in docs/decisions/0017. Example: select * from '
  'fleet.silence_at(now());';
--! EndIncluded silence/silence_at.sql
--! Included silence/fleet_silence.view.sql
create or replace view fleet.fleet_silence as
select s.cohort, s.devices, s.active, s.gone_quiet, s.share, s.usual_share, s.ratio, s.is_alarming, s.is_muted, s.muted_reason,
  s.window_start
from fleet.silence_at(now()) s;

comment on view fleet.fleet_silence is
  'For the whole fleet (all) and for each cohort: devices on the roster, devices active in the window (since window_start), '
  'active devices that have gone quiet in it, their share, the usual share at this time of day, and whether this is an alarm. '
  'While the alarm cannot be evaluated, muted_reason says why: ingest_down, ingest_resumed, unwatched, few_devices or '
  'few_samples. Example: select * from fleet.fleet_silence where is_alarming;';
--! EndIncluded silence/fleet_silence.view.sql
--! Included metrics/metric_definitions.sql
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
--! EndIncluded metrics/metric_definitions.sql
--! Included metrics/postgres_metrics.sql
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
--! EndIncluded metrics/postgres_metrics.sql
--! Included metrics/slo.view.sql
-- The targets are also in docker/prometheus/rules/, because an alert must not depend on the database that failed.
create or replace view fleet.slo as
select o.slo, o.target, o.period, c.good, c.bad,
  round(b.ratio, 6) as ratio,
  round(1 - coalesce(b.ratio, 0) / o.target, 4) as budget_left,
  case
    when c.good + c.bad = 0 then 'idle'
    when b.ratio >= o.target then 'fail'
    when b.ratio >= o.target / 2 then 'warn'
    else 'ok'
  end as status
from (
  values
    ('heartbeat_writes', 0.005, interval '1 hour'),
    ('dispatch_log', 0.002, interval '1 hour')
) as o (slo, target, period)
cross join lateral (
  select coalesce(sum(k.good), 0)::bigint as good, coalesce(sum(k.bad), 0)::bigint as bad
  from fleet.slo_counts k
  where k.slo = o.slo and k.minute > now() - o.period and k.minute <= now()
) c
cross join lateral (select c.bad::numeric / nullif(c.good + c.bad, 0) as ratio) b;

comment on view fleet.slo is
  'The error budgets: the share of the servers'' attempts that failed in the last period (ratio), and how much of the budget '
  'that target allows is left (budget_left: 1 is all, 0 is nothing, below 0 is overspent). status: ok, warn (half is spent), '
  'fail (all is spent) or idle (no attempts). Up to 10 seconds behind. Example: select * from fleet.slo where status in '
  '(''warn'', ''fail'');';
--! EndIncluded metrics/slo.view.sql
--! Included metrics/metric_values.sql
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
  union all
  select 'archive_backlog_partitions', '{}', count(*)::double precision
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving', 'archive_failed')
  union all
  select 'archiver_heartbeat_age_seconds', '{}', extract(epoch from now() - max(a.last_seen_at))::double precision
  from fleet.archivers a
  having count(*) > 0
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
--! EndIncluded metrics/metric_values.sql
--! Included metrics/record_slo.sql
create or replace function fleet.record_slo(p_server text, p_counts json) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.slo_counts as c (slo, minute, server, good, bad)
  select r.slo, r.minute, p_server, r.good, r.bad
  from json_to_recordset(p_counts) as r (slo text, minute timestamptz, good bigint, bad bigint)
  order by r.slo, r.minute
  -- These are totals of the minute so far, so a server that is not sure whether they arrived sends them again.
  on conflict on constraint slo_counts_pkey do update
    set good = greatest(c.good, excluded.good),
      bad = greatest(c.bad, excluded.bad);
$$;

comment on function fleet.record_slo(text, json) is
  'Records what a server process counted for the error budgets: its totals for each minute, sent every 10 seconds. Recording the '
  'same totals again is harmless. Example: select fleet.record_slo(''a'', '
  '''[{"slo":"heartbeat_writes","minute":"now","good":1000,"bad":2}]'');';
--! EndIncluded metrics/record_slo.sql
--! Included partitions/bind_range.sql
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
  v_table oid;
  v_constraint text := 'device_heartbeats_within_range';
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s is %s, but its table is missing', p_partition, v_partition.state),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if not exists (
    select from pg_constraint where conrelid = v_table and conname = v_constraint and convalidated
  ) then
    execute format(
      'alter table %s drop constraint if exists %I, add constraint %2$I check (ts >= %L and ts < %L)',
      v_table::regclass, v_constraint, v_partition.range_start, v_partition.range_end
    );
  end if;
end
$$;

comment on function fleet.bind_range(text) is
  'Gives a partition a CHECK constraint equal to its bounds, so that attaching it again needs no scan.';
--! EndIncluded partitions/bind_range.sql
--! Included partitions/configure_partman.sql
create or replace function fleet.configure_partman() returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update partman.part_config c
  set partition_interval = w.width,
    -- pg_partman counts partitions; the setting counts days.
    premake = w.premake
  from fleet.settings s
  cross join lateral (
    select case s.cadence when 'monthly' then '1 month' else '1 day' end as width,
      case s.cadence when 'monthly' then ceil(s.premake_days / 28.0)::integer else s.premake_days end as premake
  ) w
  where c.parent_table = 'fleet.device_heartbeats'
    and (c.partition_interval::interval <> w.width::interval or c.premake <> w.premake);
$$;

comment on function fleet.configure_partman() is 'Passes settings.cadence and settings.premake_days on to pg_partman.';
--! EndIncluded partitions/configure_partman.sql
--! Included partitions/create_partitions.sql
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
  v_taken tstzmultirange;
  v_width interval;
  v_starts timestamptz[];
begin
  if p_from is null or p_to is null or p_from > p_to or p_to - p_from > 4000 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot create partitions from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a first and a last day, in order, at most 4000 days apart: '
        'select fleet.create_partitions(current_date - 30, current_date + 14);';
  end if;

  perform fleet.sync_partitions();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));

  select range_agg(tstzrange(t.range_start, t.range_end)) into v_taken
  from (
    select a.range_start, a.range_end
    from fleet.attached_partitions() a
    union all
    -- A retired day gets no new partition; fleet.request_restore() brings it back from its archive.
    select lower(r), upper(r)
    from unnest(fleet.retired_ranges()) r
  ) t;

  for v_width, v_starts in
    select w.width, array_agg(distinct w.range_start order by w.range_start)
    from (
      select
        -- If some days of a month have their own partitions, its other days get daily partitions, too.
        case when m.is_free then interval '1 month' else interval '1 day' end as width,
        case when m.is_free then m.range_start else d.day end as range_start
      from generate_series(p_from::timestamptz, p_to::timestamptz, interval '1 day') as d (day)
      cross join fleet.settings s
      cross join lateral (
        select date_trunc('month', d.day) as range_start,
          s.cadence = 'monthly' and coalesce(
            not v_taken && tstzrange(date_trunc('month', d.day), date_trunc('month', d.day) + interval '1 month'), true
          ) as is_free
      ) m
      where coalesce(not v_taken @> d.day, true)
    ) w
    group by w.width
  loop
    perform fleet.ensure_partitions(v_starts, v_width);
  end loop;

  perform fleet.sync_partitions();
  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Creates the partitions that are missing between two days, both included, and returns their names. Skips retired days, which '
  'fleet.request_restore() brings back. Example: select fleet.create_partitions(current_date, current_date + 30);';
--! EndIncluded partitions/create_partitions.sql
--! Included partitions/data_coverage.view.sql
create or replace view fleet.data_coverage as
select d.day,
  case
    when p.in_database and p.in_archive then 'both'
    when p.in_database then 'online'
    when p.in_archive then 'archived'
    else 'missing'
  end as "where",
  p.row_count
from (
  -- Computed without a time zone: in the session's zone a day may begin at another hour, and two days a year are longer or
  -- shorter.
  select generate_series(
    (select min(range_start) from fleet.hb_partitions) at time zone 'UTC', date_trunc('day', now() at time zone 'UTC'),
    interval '1 day'
  )::date as day
) d
left join lateral (
  select bool_or(h.relid is not null) as in_database,
    bool_or(h.proven_at is not null and h.archive_url is not null) as in_archive,
    sum(h.row_count) as row_count
  from fleet.hb_partitions h
  where h.range_start <= d.day::timestamp at time zone 'UTC' and h.range_end > d.day::timestamp at time zone 'UTC'
) p on true
order by d.day desc;

comment on view fleet.data_coverage is
  'Where the heartbeats of each UTC day are: online (in the database), archived, both or missing. row_count is that of the '
  'day''s partition. Example: select * from fleet.data_coverage where "where" = ''missing'';';
--! EndIncluded partitions/data_coverage.view.sql
--! Included partitions/drop_partition.sql
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
  v_found record;
  v_settings fleet.settings;
  v_since timestamptz := clock_timestamp();
begin
  select * into strict v_settings from fleet.settings;
  -- Two passes: the row is locked only after the long comparison, and must still allow the drop then.
  for v_try in 1..2 loop
    if v_try = 1 then
      select * into v_partition from fleet.hb_partitions where partition_name = p_partition;
      if not found then
        v_partition := fleet.get_partition(p_partition);  -- raises the error
      end if;
    else
      v_partition := fleet.get_partition(p_partition);
    end if;
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
    if now() < v_partition.proven_at + v_settings.archive_grace
      or v_settings.proofs_needed > 1 and v_partition.confirmed_at is null then
      return false;
    end if;
    continue when v_try = 2;

    -- Usually done before the export; this covers days that were being archived when rollups were introduced.
    perform fleet.finish_rollups(p_partition);
    select * into v_found from fleet.compare_with_archive(p_partition);
  end loop;

  if v_found.table_oid is not null and (v_found.row_count, v_found.content_checksum)
    is distinct from (coalesce(v_partition.row_count, 0), coalesce(v_partition.content_checksum, 0)) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s differs from its archive and is not dropped: it has %s rows and its archive %s; '
          'the content checksums are %s and %s',
        p_partition, v_found.row_count, v_partition.row_count, v_found.content_checksum, v_partition.content_checksum
      ),
      detail = 'Only a superuser could write to it after the proof.',
      hint = format(
        'If the table is right: select fleet.retry_archive(%1$L); '
          'if the archive is right: select fleet.accept_archive(%1$L, ''why'');',
        p_partition
      );
  end if;

  perform fleet.drop_retired(p_partition, v_found.table_oid, v_since);
  return true;
end
$$;

comment on function fleet.drop_partition(text) is
  'Drops a retired partition whose archive is proven, after comparing its rows with the archive; refuses any other. Returns true '
  'when the table is gone, false during archive_grace or while a second proof is missing (settings.proofs_needed). '
  'Example: select partition_name, fleet.drop_partition(partition_name) from fleet.partition_health where state = ''archived'';';
--! EndIncluded partitions/drop_partition.sql
--! Included partitions/drop_retired.sql
create or replace function fleet.drop_retired(p_partition text, p_table oid, p_since timestamptz) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_left oid;
begin
  if p_table is not null then
    execute format('drop table %s', p_table::regclass);
  end if;
  v_partition := fleet.get_partition(p_partition);
  -- A table that still has the name is not the one that was compared.
  v_left := fleet.table_of(v_partition);
  if v_left is not null then
    raise exception using
      errcode = 'FL002',
      message = format('table %s appeared while partition %s was being dropped', v_left::regclass, p_partition),
      hint = format('Look at that table, then try again: select fleet.drop_partition(%L);', p_partition);
  end if;

  update fleet.hb_partitions
  set state = 'dropped', relid = null, dropped_at = now(), lease_owner = null, lease_until = null, bytes_size = 0,
    last_error = null
  where partition_name = p_partition;
  if p_table is null then
    perform fleet.record_event(
      'partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(p_since),
      'the table was already gone; nothing was compared'
    );
  else
    perform fleet.increment_counter('hb_partition_dropped_total');
    perform fleet.record_event('partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(p_since));
  end if;
end
$$;

comment on function fleet.drop_retired(text, oid, timestamptz) is
  'Drops the table of a partition, which its callers have compared with its archive, and records that. Called by '
  'fleet.drop_partition() and fleet.accept_archive().';
--! EndIncluded partitions/drop_retired.sql
--! Included partitions/ensure_partitions.sql
-- The only function that knows how the calls to create partitions differ between pg_partman 4 and 5.
create or replace function fleet.ensure_partitions(p_starts timestamptz[], p_width interval) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partman_major integer;
  v_interval text;
begin
  if cardinality(p_starts) = 0 then
    return;
  end if;
  select split_part(extversion, '.', 1)::integer into v_partman_major
  from pg_extension
  where extname = 'pg_partman';

  -- pg_partman creates only partitions of its configured width. After a change of cadence both widths may be needed.
  select partition_interval into strict v_interval
  from partman.part_config
  where parent_table = 'fleet.device_heartbeats'
  for update;
  if v_interval::interval <> p_width then
    update partman.part_config set partition_interval = p_width::text where parent_table = 'fleet.device_heartbeats';
  end if;
  if v_partman_major >= 5 then
    perform partman.create_partition_time(p_parent_table => 'fleet.device_heartbeats', p_partition_times => p_starts);
  else
    -- Otherwise 4.7 would ANALYZE the whole parent afterwards.
    execute 'select partman.create_partition_time(p_parent_table => $1, p_partition_times => $2, p_analyze => false)'
    using 'fleet.device_heartbeats', p_starts;
  end if;
  if v_interval::interval <> p_width then
    update partman.part_config set partition_interval = v_interval where parent_table = 'fleet.device_heartbeats';
  end if;
end
$$;

comment on function fleet.ensure_partitions(timestamptz[], interval) is
  'Has pg_partman create the partitions of one width that begin at these times; existing ones are left alone.';
--! EndIncluded partitions/ensure_partitions.sql
--! Included partitions/find_renamed.sql
-- Neither the oid nor the name identifies such a table any more, so its rows have to. If two tables fit, neither is chosen.
create or replace function fleet.find_renamed(p fleet.hb_partitions) returns oid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_table record;
  v_fits boolean;
  v_found oid[] := array[]::oid[];
begin
  if p.state in ('active', 'restored', 'dropped') then
    return null;
  end if;
  for v_table in
    select c.oid, c.relname
    from pg_class c
    where c.relnamespace = to_regnamespace('fleet_detached') and c.relkind = 'r' and not c.relispartition
      and not exists (select from fleet.hb_partitions o where o.partition_name = c.relname)
      and exists (
        select from pg_attribute a where a.attrelid = c.oid and a.attname = 'ts' and a.atttypid = 'timestamptz'::regtype
      )
  loop
    execute format('select min(ts) >= $1 and max(ts) < $2 from fleet_detached.%I', v_table.relname)
    into v_fits
    using p.range_start, p.range_end;
    if v_fits then
      v_found := v_found || v_table.oid;
    end if;
  end loop;
  return case when cardinality(v_found) = 1 then v_found[1] end;
end
$$;

comment on function fleet.find_renamed(fleet.hb_partitions) is
  'Finds a retired table that was renamed by hand before a dump: the only table in fleet_detached whose name is not that of a '
  'partition and whose heartbeats are all in the range of this one. Null if there is none, or more than one.';
--! EndIncluded partitions/find_renamed.sql
--! Included partitions/get_partition.sql
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
      hint = 'The names are in: select partition_name, range_start, state from fleet.partition_health;';
  end if;
  return v_partition;
end
$$;

comment on function fleet.get_partition(text) is
  'The row of fleet.hb_partitions, locked; raises an error with a hint if there is none.';
--! EndIncluded partitions/get_partition.sql
--! Included partitions/has_bounds.sql
create or replace function fleet.has_bounds(p_table oid, p_range_start timestamptz, p_range_end timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
as $$
  select exists (
    select from pg_class c
    join pg_inherits i on i.inhrelid = c.oid and i.inhparent = to_regclass('fleet.device_heartbeats')
    where c.oid = p_table
      and pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES FROM (%L) TO (%L)', p_range_start, p_range_end)
  );
$$;

comment on function fleet.has_bounds(oid, timestamptz, timestamptz) is
  'Whether a table is attached to fleet.device_heartbeats with exactly these bounds.';
--! EndIncluded partitions/has_bounds.sql
--! Included partitions/hb_partitions.trigger.sql
create or replace trigger hb_partitions_protect
  after insert or update on fleet.hb_partitions
  for each row execute function fleet_guard.note_partition();

comment on trigger hb_partitions_protect on fleet.hb_partitions is
  'Tells the guard against drops which partitions are proven.';
--! EndIncluded partitions/hb_partitions.trigger.sql
--! Included partitions/seal_relid.sql
create or replace function fleet.seal_relid() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seal text := fleet_guard.seal(new.relid);
begin
  -- A new seal requires that the table has the partition's name. A seal that fits is kept, even if the table was renamed later.
  if new.relid_seal is distinct from v_seal then
    new.relid_seal := case
      when exists (
        select from pg_class c
        where c.oid = new.relid and c.relkind = 'r' and c.relname = new.partition_name
          and c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached'))
      ) then v_seal
    end;
  end if;
  return new;
end
$$;

comment on function fleet.seal_relid() is
  'Trigger on fleet.hb_partitions: sets relid_seal if relid is recorded in this database while its table has the name of the '
  'partition.';
--! EndIncluded partitions/seal_relid.sql
--! Included partitions/hb_partitions_seal.trigger.sql
create or replace trigger hb_partitions_seal
  before insert or update of relid, relid_seal on fleet.hb_partitions
  for each row execute function fleet.seal_relid();

comment on trigger hb_partitions_seal on fleet.hb_partitions is
  'Sets relid_seal, which marks relid as recorded in this database.';
--! EndIncluded partitions/hb_partitions_seal.trigger.sql
--! Included partitions/hold_partition.sql
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
      message = format('partition %s was dropped; its rows are in %s', p_partition, v_partition.archive_url),
      hint = format('Bring it back first: select fleet.request_restore(%L);', (v_partition.range_start at time zone 'UTC')::date);
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
  'Keeps a partition from being retired, archived or dropped until it is released. '
  'Example: select fleet.hold_partition(partition_name, ''legal hold'') from fleet.partition_health '
  'where range_start <= current_date - 30 and range_end > current_date - 30;';
--! EndIncluded partitions/hold_partition.sql
--! Included partitions/make_read_only.sql
-- The archiver may read and owns nothing, because the owner of a table can grant itself every right on it.
create or replace function fleet.make_read_only(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'revoke all on fleet_detached.%I from public, fleet_owner, fleet_server, fleet_archiver, fleet_reader, fleet_dba',
    p_partition
  );
  execute format('grant select on fleet_detached.%I to fleet_owner, fleet_archiver, fleet_dba, fleet_reader', p_partition);
  -- For VACUUM. Before PostgreSQL 17 only the owner may run it, in the job fleet-freeze. Since 17 even the owner needs this
  -- right, which was revoked above with the others.
  if current_setting('server_version_num')::integer >= 170000 then
    execute format('grant maintain on fleet_detached.%I to fleet_owner, fleet_archiver', p_partition);
  end if;
end
$$;

comment on function fleet.make_read_only(text) is
  'Lets the archiver, the DBA and readers read a retired table, and lets nobody write to it.';
--! EndIncluded partitions/make_read_only.sql
--! Included partitions/note_storage.sql
create or replace function fleet.note_storage(p_now timestamptz default now()) returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  insert into fleet.storage_daily as d (
    day, rows_online, bytes_online, bytes_archived, bytes_pushed, database_bytes, noted_at
  )
  select p_now::date, t.rows_online, t.bytes_online, t.bytes_archived,
    coalesce((select c.total from fleet.counters c where c.counter = 'archive_bytes_pushed_total'), 0),
    pg_database_size(current_database()), p_now
  from (
    select
      -- A partition is counted when its day is over. Until then the last ANALYZE gives an estimate.
      coalesce(sum(coalesce(p.row_count, greatest(c.reltuples, 0)::bigint)) filter (where c.oid is not null), 0) as rows_online,
      coalesce(sum(pg_total_relation_size(c.oid)), 0) as bytes_online,
      coalesce(sum(p.archive_bytes) filter (where p.proven_at is not null), 0) as bytes_archived
    from fleet.hb_partitions p
    left join pg_class c on c.oid = fleet.table_of(p)
  ) t
  on conflict (day) do update
    set rows_online = excluded.rows_online,
      bytes_online = excluded.bytes_online,
      bytes_archived = excluded.bytes_archived,
      bytes_pushed = excluded.bytes_pushed,
      database_bytes = excluded.database_bytes,
      noted_at = excluded.noted_at
  returning d.bytes_online;
$$;

comment on function fleet.note_storage(timestamptz) is
  'Records today''s sizes in fleet.storage_daily; returns the size of the online partitions in bytes. Run by fleet.nightly().';
--! EndIncluded partitions/note_storage.sql
--! Included partitions/partition_health.view.sql
create or replace view fleet.partition_health as
select p.partition_name, p.range_start, p.range_end, p.state, p.step, p.row_count,
  coalesce(pg_total_relation_size(case when p.state <> 'dropped' then fleet.table_of(p) end), 0) as bytes_size,
  p.attempts, p.next_attempt_at, p.last_error, p.held_reason, p.lease_owner, p.lease_until, p.detached_at, p.proven_at,
  p.dropped_at, p.restored_at, p.archive_url
from fleet.hb_partitions p
order by p.range_start desc;

comment on view fleet.partition_health is
  'Every partition that ever existed, newest first, with its state and its last error. '
  'Example: select * from fleet.partition_health where state = ''archive_failed'';';
--! EndIncluded partitions/partition_health.view.sql
--! Included partitions/premake.sql
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
  perform fleet.note_columns();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));
  select
    greatest(
      (p_now - s.retention)::date,
      coalesce((select min(a.range_start)::date from fleet.attached_partitions() a), p_now::date)
    ),
    p_now::date + s.premake_days
  into strict v_from, v_to
  from fleet.settings s;

  -- Right after a change of cadence the last partition has the old width, and run_maintenance would miscount.
  if (
    select a.range_end = a.range_start + c.partition_interval::interval
    from fleet.attached_partitions() a
    cross join partman.part_config c
    where c.parent_table = 'fleet.device_heartbeats'
    order by a.range_start desc
    limit 1
  ) then
    perform partman.run_maintenance(p_parent_table => 'fleet.device_heartbeats', p_analyze => false, p_jobmon => false);
  end if;

  -- run_maintenance adds partitions only after the last one, uses the real clock, and reports success when it is already running
  -- elsewhere. Whatever is still missing is created here, including days that a long outage left out, for devices that send late.
  perform fleet.create_partitions(v_from, v_to);

  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.premake(timestamptz) is
  'Creates the partitions up to premake_days ahead, and those that are missing within the retention, and returns their names. '
  'Run by fleet.maintain().';
--! EndIncluded partitions/premake.sql
--! Included partitions/recommend_cadence.sql
create or replace function fleet.recommend_cadence() returns table (cadence text, rows_per_month bigint, reason text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with measured as (
    select sum(p.days) as days, sum(p.rows) as rows
    from (
      select extract(epoch from a.range_end - a.range_start) / 86400 as days,
        greatest(coalesce(nullif(h.row_count, 0), c.reltuples::bigint), 0) as rows
      from fleet.attached_partitions() a
      join pg_class c on c.oid = a.relid
      left join fleet.hb_partitions h on h.partition_name = a.partition_name
      -- Only partitions whose range is over. Empty ones are left out, because the fleet may not have sent yet.
      where a.range_end <= now() and a.range_end > now() - interval '62 days'
    ) p
    where p.rows > 0
  ),
  monthly as (
    select coalesce(round(rows / days * 30), 0)::bigint as rows_per_month, coalesce(days, 0)::integer as days
    from measured
  )
  select case when m.rows_per_month > 5000000 then 'daily' else 'monthly' end, m.rows_per_month,
    case
      when m.days = 0 then 'no whole day with heartbeats is online yet; decide when there is one'
      else format(
        '%s rows a month, measured over %s days: %s 5000000, %s',
        m.rows_per_month, m.days,
        case when m.rows_per_month > 5000000 then 'above' else 'not above' end,
        case
          when m.rows_per_month > 5000000 then 'so retire and archive each day on its own'
          else 'so a partition for each day would only cost planning time'
        end
      )
    end
  from monthly m;
$$;

comment on function fleet.recommend_cadence() is
  'Whether partitions should hold a day or a month, based on the measured volume (daily above 5 million rows a month). '
  'Example: select * from fleet.recommend_cadence();';
--! EndIncluded partitions/recommend_cadence.sql
--! Included partitions/refresh_sizes.sql
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
  set bytes_size = s.bytes
  from (
    select q.partition_name, pg_total_relation_size(fleet.table_of(q)) as bytes
    from fleet.hb_partitions q
    where q.state in ('active', 'restored') and q.relid is not null
  ) s
  where s.partition_name = p.partition_name and p.bytes_size is distinct from s.bytes;

  -- An exact count once the day is over. Not repeated when the day can no longer grow, nor if the count is that of an archive.
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
  'Refreshes the sizes of attached partitions, and the row counts of past ones that can still change; returns how many it '
  'counted. Run by fleet.nightly().';
--! EndIncluded partitions/refresh_sizes.sql
--! Included partitions/relink_tables.sql
-- Fixes everything in a restored dump that had a meaning only in the cluster from which it was taken.
create or replace function fleet.relink_tables() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_catalog text := left(fleet_guard.seal(0), -1);  -- read once, not for each row
  v_partition fleet.hb_partitions;
  v_import fleet.imports;
  v_table oid;
  v_found integer := 0;
  v_lost text[] := array[]::text[];
begin
  for v_partition in
    select p.*
    from fleet.hb_partitions p
    where p.relid is not null and p.relid_seal is distinct from v_catalog || p.relid
    order by p.range_start
    for update
  loop
    v_table := coalesce(fleet.table_of(v_partition), fleet.find_renamed(v_partition));
    update fleet.hb_partitions p
    set relid = v_table, relid_seal = v_catalog || v_table,
      -- A transaction ID of this cluster.
      cold_xid = case when p.cold_xid is not null then pg_current_xact_id()::xid end,
      last_error = case when v_table is null then 'the table is gone' else p.last_error end
    where p.partition_name = v_partition.partition_name;
    if v_table is null then
      v_lost := v_lost || v_partition.partition_name;
    else
      v_found := v_found + 1;
    end if;
  end loop;

  for v_import in
    select a.*
    from fleet.imports a
    where a.relid_seal is distinct from v_catalog || a.relid
    for update
  loop
    v_table := coalesce(fleet.source_table(v_import), 0);
    if v_table <> v_import.relid
      and to_regproc(format('fleet.%I', 'forward_' || v_import.relid)) is not null
      and to_regproc(format('fleet.%I', 'forward_' || v_table)) is null then
      execute format('alter function fleet.%I() rename to %I', 'forward_' || v_import.relid, 'forward_' || v_table);
    end if;
    update fleet.imports a
    set relid = v_table, relid_seal = v_catalog || v_table,
      -- The rows are in other blocks of the table now, so it is read from the start.
      filenode = 0,
      -- Rows that were written after the verification were found by transaction IDs, which are different here.
      state = case a.state when 'verified' then 'moved' else a.state end,
      verified_xid = null, verified_at = null
    where a.source = v_import.source;
    v_found := v_found + 1;
  end loop;

  if v_found > 0 or cardinality(v_lost) > 0 then
    -- Transaction IDs of another cluster may be in the future here, and servers would forget those tokens at every poll.
    delete from fleet.token_change_log l
    where l.changed_xid >= pg_snapshot_xmax(pg_current_snapshot());
    perform fleet.record_event(
      'store.relinked', p_rows => v_found, p_is_ok => cardinality(v_lost) = 0,
      p_detail => concat_ws('; ', 'tables found by name', 'no table found for ' || nullif(array_to_string(v_lost, ', '), ''))
    );
  end if;
  return v_found;
end
$$;

comment on function fleet.relink_tables() is
  'After a dump was restored, finds the table of each partition and each import by name and records its new oid; returns how '
  'many. Changes nothing in any other store. Run at the start of fleet.maintain() and fleet.nightly(), and by '
  'fleet.sync_partitions().';
--! EndIncluded partitions/relink_tables.sql
--! Included partitions/retire_partition.sql
-- pg_partman retires by age alone. Older partitions that must stay attached (held, restored and late days) are detached before it
-- and attached again after it, in the same transaction, under the lock on the parent that the detach takes anyway. Because of
-- their CHECK constraints attaching them only changes the catalog.
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
  v_kept record;
  v_table oid;
  v_aside oid[];
  v_starts timestamptz[];
  v_ends timestamptz[];
  v_rows bigint;
  v_bytes bigint;
  v_source text;
  v_since timestamptz := clock_timestamp();
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'active' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s, not active, and cannot be retired', p_partition, v_partition.state),
      hint = case v_partition.state
        when 'restored' then format('Release it first: select fleet.release_partition(%L);', p_partition)
        else 'It is already retired; see select * from fleet.partition_health.'
      end;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and cannot be retired', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  v_source := (select min(h.source) from fleet.import_holds() h where h.since < v_partition.range_end);
  if v_source is not null then
    raise exception using
      errcode = 'FL002',
      message = format('rows of %s are being imported into partition %s, which cannot be retired yet', v_source, p_partition),
      hint = format('See select * from fleet.import_progress; then: select fleet.confirm_import(%L);', v_source);
  end if;
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s is active, but its table is missing; there is nothing to retire', p_partition),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if v_partition.range_end > p_now then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s ends at %s and may still receive heartbeats', p_partition, v_partition.range_end),
      hint = 'Only a partition whose range is over can be retired.';
  end if;

  -- Count first, detach last, so that the parent is locked only for the catalog change.
  execute format('select count(*) from fleet.%I', p_partition) into v_rows;
  v_bytes := pg_total_relation_size(v_table);

  -- Lock the parent before looking, so that no restore attaches an older day in between, which pg_partman would retire, too.
  -- LOCK TABLE needs the right to write, which the owner does not have; this statement takes the same lock and changes nothing.
  alter table only fleet.device_heartbeats disable row level security;
  -- From now on the columns of the partition stay the same.
  perform fleet.note_columns();
  select array_agg(a.relid), array_agg(a.range_start), array_agg(a.range_end) into v_aside, v_starts, v_ends
  from fleet.attached_partitions() a
  where a.range_start < v_partition.range_start;
  for v_kept in select a.relid from unnest(v_aside) as a (relid) loop
    execute format('alter table fleet.device_heartbeats detach partition %s', v_kept.relid::regclass);
  end loop;

  perform partman.drop_partition_time(
    p_parent_table => 'fleet.device_heartbeats',
    p_retention => interval '0',
    p_keep_table => true,
    p_keep_index => true,
    p_retention_schema => 'fleet_detached',
    p_reference_timestamp => v_partition.range_end + interval '1 microsecond'
  );

  for v_kept in
    select a.relid, a.range_start, a.range_end
    from unnest(v_aside, v_starts, v_ends) as a (relid, range_start, range_end)
  loop
    execute format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
      v_kept.relid::regclass, v_kept.range_start, v_kept.range_end
    );
  end loop;

  if to_regclass(format('fleet_detached.%I', p_partition)) is distinct from v_table::regclass then
    raise exception using
      errcode = 'FL002',
      message = format('pg_partman did not retire partition %s', p_partition),
      hint = 'Another maintenance run of pg_partman may hold its lock; try again in a moment.';
  end if;
  perform fleet.make_read_only(p_partition);

  update fleet.hb_partitions
  set state = 'detached', step = null, counted = null, detached_at = clock_timestamp(), bytes_size = v_bytes,
    -- If the day was archived before, the count of that archive stays until the next export.
    row_count = case when archive_url is null then v_rows else row_count end,
    attempts = 0, next_attempt_at = now(), last_error = null
  where partition_name = p_partition;
  perform fleet.record_event('partition.detach', p_partition, v_rows, fleet.elapsed_ms(v_since));
  return v_rows;
end
$$;

comment on function fleet.retire_partition(text, timestamptz) is
  'Counts a past partition, has pg_partman detach it into fleet_detached, and leaves it to the archiver. Returns its row count. '
  'Run by fleet.nightly() and fleet.archive_partition().';
--! EndIncluded partitions/retire_partition.sql
--! Included partitions/schedule_vacuum.sql
create or replace function fleet.schedule_vacuum() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    return 0;
  end if;
  return (select count(*) from fleet.schedule_jobs() j where j.jobname in ('fleet-vacuum', 'fleet-freeze'));
end
$$;

comment on function fleet.schedule_vacuum() is
  'Tells pg_cron which partitions to vacuum and to freeze next; returns the number of jobs, 0 if pg_cron is in another database. '
  'Run by fleet.nightly().';
--! EndIncluded partitions/schedule_vacuum.sql
--! Included partitions/set_cadence.sql
create or replace function fleet.set_cadence(p_cadence text, p_now timestamptz default now()) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_settings fleet.settings;
  v_end date;
  v_first date;
begin
  perform fleet.not_in_future(p_now);
  if p_cadence is null or p_cadence not in ('daily', 'monthly') then
    raise exception using
      errcode = 'FL422',
      message = format('cadence %s is neither daily nor monthly', coalesce(p_cadence, 'null')),
      hint = 'Example: select fleet.set_cadence(''daily''); see first: select * from fleet.recommend_cadence();';
  end if;
  select * into strict v_settings from fleet.settings for update;
  if v_settings.cadence = p_cadence then
    return format('the cadence is already %s', p_cadence);
  end if;

  -- The new width starts where the existing partitions end; they are not changed.
  perform fleet.sync_partitions();
  select greatest(max(a.range_end)::date, p_now::date) into v_end from fleet.attached_partitions() a;
  v_first := v_end;
  if p_cadence = 'monthly' and v_end <> date_trunc('month', v_end) then
    v_first := (date_trunc('month', v_end) + interval '1 month')::date;
    perform fleet.create_partitions(v_end, v_first - 1);
  end if;

  update fleet.settings set cadence = p_cadence;
  perform fleet.configure_partman();
  -- The first partition of the new width, from which pg_partman continues.
  perform fleet.create_partitions(v_first, greatest(v_first, p_now::date + v_settings.premake_days));
  return format(
    'cadence %s (was %s) from %s on; partitions before that stay as they are', p_cadence, v_settings.cadence, v_first
  );
end
$$;

comment on function fleet.set_cadence(text, timestamptz) is
  'Sets whether partitions hold a day or a month, from the first day that has no partition yet (monthly: from the first whole '
  'month). Example: select fleet.set_cadence(''monthly'');';
--! EndIncluded partitions/set_cadence.sql
--! Included partitions/set_premake.sql
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
  perform fleet.configure_partman();
  return format('premake %s days (was %s); the next hourly run creates missing partitions', p_days, v_old);
end
$$;

comment on function fleet.set_premake(integer) is
  'Sets how many days ahead partitions are created. Example: select fleet.set_premake(14);';
--! EndIncluded partitions/set_premake.sql
--! Included partitions/set_retention.sql
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
  'Sets how long heartbeats stay online, for the next nightly run, and says how many partitions that run will retire. '
  'Example: select fleet.set_retention(''60 days'');';
--! EndIncluded partitions/set_retention.sql
--! Included partitions/set_up_partitions.sql
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
      hint = 'Run sql/setup/extensions.sql as a superuser, or: create extension pg_partman schema partman;';
  end if;
  if exists (select from partman.part_config where parent_table = 'fleet.device_heartbeats') then
    return 0;
  end if;

  v_interval := case v_settings.cadence when 'monthly' then '1 month' else '1 day' end;
  v_first := (p_now - v_settings.retention)::date;
  execute format(
    $call$
      select partman.%I(
        p_parent_table => $1, p_control => 'ts', p_interval => $2, p_premake => $3, p_start_partition => $4,
        p_template_table => $5, p_jobmon => false, %s
      )
    $call$,
    -- create_parent() is its name before 5.4.
    case when exists (
      select from pg_proc p where p.proname = 'create_partition' and p.pronamespace = 'partman'::regnamespace
    ) then 'create_partition' else 'create_parent' end,
    case when v_partman_major >= 5 then 'p_type => ''range'', p_default_table => false' else 'p_type => ''native''' end
  ) using 'fleet.device_heartbeats', v_interval, v_settings.premake_days, v_first::text, 'fleet.device_heartbeats_template';
  if v_partman_major < 5 then
    -- Rows in a default partition would block premake and retention; fleet.ingest() quarantines them instead.
    drop table fleet.device_heartbeats_default;
  end if;

  update partman.part_config
  set infinite_time_partitions = true,  -- otherwise an idle fleet would get no new partitions
    inherit_privileges = true,
    retention = null,  -- fleet.nightly() retires partitions, each in its own transaction
    retention_schema = 'fleet_detached',
    retention_keep_table = true
  where parent_table = 'fleet.device_heartbeats';

  return fleet.sync_partitions();
end
$$;

comment on function fleet.set_up_partitions(timestamptz) is
  'Puts fleet.device_heartbeats under the control of pg_partman (4.7 or later), with partitions for the retention and premake_days '
  'ahead, and without a default partition. Returns how many partitions it created; 0 if this was done before.';
--! EndIncluded partitions/set_up_partitions.sql
--! Included partitions/storage_growth.view.sql
create or replace view fleet.storage_growth as
select (p.range_start at time zone 'UTC')::date as day, p.partition_name, p.state, p.row_count,
  coalesce(pg_total_relation_size(case when p.state <> 'dropped' then fleet.table_of(p) end), 0) as bytes_online,
  coalesce(p.archive_bytes, 0) as bytes_archived
from fleet.hb_partitions p
where p.range_start <= now()
order by p.range_start desc;

comment on view fleet.storage_growth is
  'Rows and bytes of each partition, by its first UTC day, online and in the archive, newest first. '
  'Example: select sum(bytes_online) from fleet.storage_growth;';
--! EndIncluded partitions/storage_growth.view.sql
--! Included partitions/storage_history.view.sql
create or replace view fleet.storage_history as
select d.day, d.rows_online, d.bytes_online, d.bytes_archived, d.bytes_pushed, d.database_bytes,
  d.rows_online - lag(d.rows_online) over w as rows_added,
  d.bytes_online - lag(d.bytes_online) over w as bytes_added,
  d.bytes_pushed - lag(d.bytes_pushed) over w as bytes_pushed_since,
  d.noted_at
from fleet.storage_daily d
window w as (order by d.day)
order by d.day desc;

comment on view fleet.storage_history is
  'Rows and bytes online and in the archive, and the size of the database, as each nightly run found them, newest first. The '
  'columns that end in _added or _since are the difference from the row before. '
  'Example: select day, database_bytes, bytes_pushed_since from fleet.storage_history where day > current_date - 30;';
--! EndIncluded partitions/storage_history.view.sql
--! Included partitions/sync_partitions.sql
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
  perform fleet.relink_tables();
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
      -- A table that was renamed by hand is not new; fleet.check() asks to restore its name.
      and not exists (
        select from fleet.hb_partitions o where o.relid = a.relid and o.partition_name <> a.partition_name
      )
    order by a.range_start
    -- A known name means that the table came back: restored from a dump, or attached by hand.
    on conflict (partition_name) do update
      set relid = excluded.relid,
        range_start = excluded.range_start,
        range_end = excluded.range_end,
        state = case when p.state = 'restored' then 'restored' else 'active' end,
        is_proven_empty = false,
        step = null, lease_owner = null, lease_until = null, next_attempt_at = null
    returning p.partition_name
  loop
    v_count := v_count + 1;
    perform fleet.record_event('partition.create', v_new);
  end loop;
  if v_count > 0 then
    perform fleet.increment_counter('partitions_created_total', v_count);
  end if;

  -- A partition that was detached by hand is archived like other retired ones. fleet.check() reports one whose table is gone.
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
    and not exists (
      select from pg_inherits i where i.inhrelid = p.relid and i.inhparent = to_regclass('fleet.device_heartbeats')
    );

  return v_count;
end
$$;

comment on function fleet.sync_partitions() is
  'Brings fleet.hb_partitions in line with the catalog; returns how many partitions were new to it.';
--! EndIncluded partitions/sync_partitions.sql
--! Included partitions/tune_autovacuum.sql
-- Hot partitions grow all day, recent ones get a late row now and then, and cold ones do not change any more.
create or replace function fleet.tune_autovacuum(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition record;
  v_count integer := 0;
begin
  for v_partition in
    select a.relid, a.partition_name, w.temperature, w.options
    from fleet.attached_partitions() a
    join pg_class c on c.oid = a.relid
    cross join fleet.settings s
    cross join lateral (
      select case
        when a.range_end > p_now then 'hot'
        when a.range_end > p_now - s.max_late then 'recent'
        else 'cold'
      end as temperature
    ) t
    cross join lateral (
      values
        -- Small steps keep the visibility map and the statistics up to date during the day.
        ('hot', array['autovacuum_analyze_scale_factor=0.02', 'autovacuum_vacuum_insert_scale_factor=0.05']),
        ('recent', array[]::text[]),
        -- The job fleet-freeze freezes it once. Vacuum against wraparound runs in any case.
        ('cold', array['autovacuum_enabled=false'])
    ) as w (temperature, options)
    where w.temperature = t.temperature
      and w.options <> array(select o from unnest(c.reloptions) as o order by o)
    order by a.range_start
  loop
    execute format(
      'alter table %s reset (autovacuum_enabled, autovacuum_analyze_scale_factor, autovacuum_vacuum_insert_scale_factor)',
      v_partition.relid::regclass
    );
    if cardinality(v_partition.options) > 0 then
      execute format('alter table %s set (%s)', v_partition.relid::regclass, array_to_string(v_partition.options, ', '));
    end if;
    update fleet.hb_partitions
    set cold_xid = case v_partition.temperature when 'cold' then pg_current_xact_id()::xid end
    where partition_name = v_partition.partition_name;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.tune_autovacuum(timestamptz) is
  'Sets the autovacuum parameters of partitions as they age: hot (today and ahead), recent (within max_late) and cold; returns '
  'how many changed. Run by fleet.nightly().';
--! EndIncluded partitions/tune_autovacuum.sql
--! Included silence/silence_metrics.sql
create or replace function fleet.silence_metrics()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select v.metric, jsonb_build_object('cohort', s.cohort), v.value
  from fleet.fleet_silence s
  cross join lateral (
    values
      ('cohort_devices', s.devices::double precision),
      ('cohort_active_devices', s.active),
      ('cohort_gone_quiet_devices', s.gone_quiet),
      ('cohort_gone_quiet_ratio', s.share),
      ('cohort_usual_quiet_ratio', s.usual_share),
      ('cohort_silence_alarm', s.is_alarming::integer),
      ('cohort_silence_muted', s.is_muted::integer)
  ) as v (metric, value)
  where v.value is not null;
$$;

comment on function fleet.silence_metrics() is
  'fleet.fleet_silence for /metrics. Separate from fleet.metric_values(), because it reads every device; a server calls it once '
  'a minute.';
--! EndIncluded silence/silence_metrics.sql
--! Included silence/watch_silence.sql
create or replace function fleet.watch_silence(p_now timestamptz default now()) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  c_every constant interval := interval '10 minutes';
  c_keep constant interval := interval '8 days';
  c_around constant interval := interval '90 minutes';
  v_watch fleet.silence_watch;
  v_settings fleet.settings;
  v_newest timestamptz;
  v_is_remembered boolean;
begin
  select * into strict v_settings from fleet.settings;
  select * into strict v_watch from fleet.silence_watch for update;
  select max(ls.last_received_at) into v_newest from fleet.device_last_status ls;

  -- While the devices of a gap are still to be counted, a further gap extends it rather than replacing it.
  v_is_remembered := v_watch.gap_to is null and v_watch.gap_from is not null
    or p_now < v_watch.gap_to + 2 * v_settings.silence_window;
  if fleet.is_ingest_down(v_newest, p_now) then
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else v_newest end;
    v_watch.gap_to := null;
  elsif v_watch.gap_from is not null and v_watch.gap_to is null then
    v_watch.gap_to := p_now;
  elsif v_watch.looked_at < p_now - v_settings.ingest_gap or v_watch.looked_at < pg_postmaster_start_time() then
    -- Nothing is known about ingest since the last call.
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else coalesce(v_watch.newest_received_at, p_now) end;
    v_watch.gap_to := p_now;
  end if;
  update fleet.silence_watch
  set looked_at = p_now, newest_received_at = v_newest, gap_from = v_watch.gap_from, gap_to = v_watch.gap_to;

  if date_bin(c_every, p_now, '2000-01-01Z') <= v_watch.sampled_at then
    return;
  end if;
  -- A sample taken while the alarm is muted, or over a longer window, must not count as usual.
  insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
  select a.cohort, p_now, a.active, a.gone_quiet
  from fleet.silence_at(p_now) a
  where a.active > 0 and coalesce(a.muted_reason in ('few_devices', 'few_samples'), true)
    and a.window_start = p_now - v_settings.silence_window
  on conflict do nothing;
  delete from fleet.silence_samples s
  where s.sampled_at < p_now - c_keep;

  delete from fleet.silence_usual;
  insert into fleet.silence_usual (cohort, usual_share, samples, days, computed_at)
  select a.cohort, case when k.days >= 3 then k.peaks[2] else a.highest end, a.samples, coalesce(k.days, 0), p_now
  from (
    select s.cohort, count(*) as samples,
      -- What is happening now does not count as usual.
      max(s.gone_quiet / s.active::double precision)
        filter (where s.sampled_at < p_now - greatest(c_around, 2 * v_settings.silence_window)) as highest
    from fleet.silence_samples s
    group by s.cohort
  ) a
  left join (
    select p.cohort, count(*) as days, array_agg(p.peak order by p.peak desc) as peaks
    from (
      select s.cohort, d.days_ago, max(s.gone_quiet / s.active::double precision) as peak
      from generate_series(1, 7) as d (days_ago)
      join fleet.silence_samples s
        on s.sampled_at between p_now - d.days_ago * interval '1 day' - c_around
          and p_now - d.days_ago * interval '1 day' + c_around
      group by s.cohort, d.days_ago
    ) p
    group by p.cohort
  ) k using (cohort);

  update fleet.silence_watch
  set sampled_at = p_now;
end
$$;

comment on function fleet.watch_silence(timestamptz) is
  'Checks whether heartbeats arrive, and every 10 minutes takes a sample of fleet.fleet_silence, from which it computes what is '
  'usual. Called each minute by fleet.mark_silent(). Example: select fleet.watch_silence();';
--! EndIncluded silence/watch_silence.sql
--! Included status/backfill_last_status.sql
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
      hint = 'Give at least 1 day. Example: select fleet.backfill_last_status(7);';
  end if;
  select h.updated into updated from fleet.heal_last_status(make_interval(days => p_days), 2147483647) h;
  perform fleet.record_event('backfill.completed', p_rows => updated);
end
$$;

comment on function fleet.backfill_last_status(integer) is
  'Fills last status from the stored heartbeats of the last p_days days, for all devices. '
  'Example: select fleet.backfill_last_status(7);';
--! EndIncluded status/backfill_last_status.sql
--! Included status/device_day.sql
create or replace function fleet.device_day(p_device_id bigint, p_now timestamptz default now())
returns table (span_start timestamptz, beats integer, unity_down integer, battery_pct numeric, signal_dbm numeric)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with spans as (
    select generate_series(last.span - interval '23 hours 50 minutes', last.span, interval '10 minutes') as span
    from (select date_bin('10 minutes', fleet.not_in_future(p_now), '2000-01-01 00:00:00+00') as span) last
  ),
  beats as (
    select date_bin('10 minutes', h.ts, '2000-01-01 00:00:00+00') as span, count(*) as beats,
      count(*) filter (where not h.unity_running) as unity_down, avg(h.battery_pct) as battery_pct,
      avg(h.signal_dbm) as signal_dbm
    from fleet.device_heartbeats h
    where h.device_id = p_device_id
      and h.ts >= date_bin('10 minutes', p_now, '2000-01-01 00:00:00+00') - interval '23 hours 50 minutes'
      and h.ts <= p_now
    group by 1
  )
  select s.span, coalesce(b.beats, 0)::integer, coalesce(b.unity_down, 0)::integer, round(b.battery_pct, 1),
    round(b.signal_dbm, 1)
  from spans s
  left join beats b using (span)
  order by s.span
$$;

comment on function fleet.device_day(bigint, timestamptz) is
  'The last 24 hours of a device in spans of ten minutes, oldest first: the number of heartbeats, how many of them with Unity '
  'down, and the means of battery and signal (null without a heartbeat). '
  'Example: select * from fleet.device_day(42) where beats = 0;';
--! EndIncluded status/device_day.sql
--! Included status/device_status.view.sql
create or replace view fleet.device_status as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.unity_running,
  d.signal_dbm, d.agent_version, d.ip, d.last_received_at, d.heartbeat_interval, d.enrolled_at
from fleet.device_state d;

comment on view fleet.device_status is
  'Each enrolled device: its status (new, online, late, offline or clock_skewed), and what it reported last. '
  'Example: select status, count(*) from fleet.device_status group by status;';
--! EndIncluded status/device_status.view.sql
--! Included status/device_status_legacy.view.sql
-- Partitions are read newest first until one has a row. No row can be further in the future than settings.max_future allows.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    q.received_at > coalesce(h.received_at, '-infinity'), h.ts, i.expected, (select s.offline_after from fleet.settings s), now()
  ) as status,
  h.ts as last_ts,
  extract(epoch from now() - h.ts)::bigint as seconds_since,
  h.battery_pct, h.network_type, h.unity_running, h.signal_dbm, h.agent_version, h.ip,
  greatest(h.received_at, q.received_at) as last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (  -- as in fleet.device_state
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
left join lateral (
  select b.*
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts <= now() + interval '1 day'
  order by b.ts desc
  limit 1
) h on true
left join lateral (
  select max(r.received_at) as received_at
  from fleet.heartbeat_quarantine r
  where r.device_id = d.device_id and r.reason in ('too_late', 'in_future')
) q on true
where d.revoked_at is null;

comment on view fleet.device_status_legacy is
  'The same as fleet.device_status, but read from the heartbeats and without fleet.device_last_status. Slow: for comparison, '
  'and the server''s fallback (READ_FROM_LAST_STATUS=false). '
  'Example: select * from fleet.device_status_legacy where device_id = 42;';
--! EndIncluded status/device_status_legacy.view.sql
--! Included status/marks_hold.sql
create or replace function fleet.marks_hold(p_age interval default null) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select now() <= m.marked_at + m.base / 4 and s.offline_after >= m.base and coalesce(p_age, s.offline_after) >= m.base
  from fleet.silence_marks m
  cross join fleet.settings s;
$$;

comment on function fleet.marks_hold(interval) is
  'Whether every device that has been silent for at least this long (default: settings.offline_after) has the mark '
  'device_last_status.is_silent. Devices that are asked for a heartbeat less than twice in that time are excepted. If false, '
  'read without the mark. See fleet.mark_silent().';
--! EndIncluded status/marks_hold.sql
--! Included status/devices_offline.view.sql
-- Only one of the two halves runs: the choice is made once, before the first row. In the first half, OFFSET 0 keeps the planner
-- from joining the whole fleet to a few devices, because it cannot guess how many are offline.
create or replace view fleet.devices_offline as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_last_status ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where fleet.marks_hold()
  and ls.is_silent and now() - ls.last_ts > (select s.offline_after from fleet.settings s)
  and d.status = 'offline'
union all
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip
from fleet.device_state d
where not fleet.marks_hold() and d.status = 'offline'
order by last_ts;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first. '
  'Example: select * from fleet.devices_offline where seconds_since > 720;';
--! EndIncluded status/devices_offline.view.sql
--! Included status/fleet_summary.view.sql
-- Counted by status first, so that each device's status is derived once.
create or replace view fleet.fleet_summary as
select coalesce(d.cohort, '(all)') as cohort,
  coalesce(sum(d.devices), 0)::bigint as devices,
  coalesce(sum(d.devices) filter (where d.status = 'online'), 0)::bigint as online,
  coalesce(sum(d.devices) filter (where d.status = 'late'), 0)::bigint as late,
  coalesce(sum(d.devices) filter (where d.status = 'offline'), 0)::bigint as offline,
  coalesce(sum(d.devices) filter (where d.status = 'new'), 0)::bigint as new,
  coalesce(sum(d.devices) filter (where d.status = 'clock_skewed'), 0)::bigint as clock_skewed,
  coalesce(sum(d.devices) filter (where d.is_unity_down and d.status in ('online', 'late')), 0)::bigint as unity_down
from (
  select s.cohort, s.status, s.unity_running is false as is_unity_down, count(*) as devices
  from fleet.device_status s
  group by s.cohort, s.status, s.unity_running is false
) d
group by grouping sets ((d.cohort), ())
order by grouping(d.cohort) desc, d.cohort;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. Example: select * from fleet.fleet_summary;';
--! EndIncluded status/fleet_summary.view.sql
--! Included status/fleet_trend.view.sql
create or replace view fleet.fleet_trend as
select s.sampled_at, s.devices, s.online, s.late, s.offline, s.new, s.clock_skewed, s.unity_down
from fleet.fleet_samples s
order by s.sampled_at;

comment on view fleet.fleet_trend is
  'How many devices were online, late, offline, … in each 10 minutes of the last 8 days, oldest first. There is no row for a '
  'time when nothing ran. '
  'Example: select sampled_at, offline from fleet.fleet_trend where sampled_at > now() - interval ''1 day'';';
--! EndIncluded status/fleet_trend.view.sql
--! Included status/heal_last_status.sql
-- Starts from the devices, with one index probe for each device and partition. A scan would read all heartbeats of the day.
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
  v_after bigint;
  v_last bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('fleet.reconcile', 0)) then
    raise exception using
      errcode = 'FL003',
      message = 'another session is reconciling last status',
      hint = 'Wait until it ends. If it is stuck: select * from fleet.force_unlock(''reconcile'');';
  end if;
  -- A run that reached its limit left the devices after the last one to the next run. So devices that fall behind again and again
  -- cannot keep others from their turn.
  select position into v_after from fleet.cursors where cursor_name = 'reconcile';
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
  behind as (
    select n.*
    from newest n
    where n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id <= coalesce(v_after, 0), n.device_id
    limit p_max_rows
  ),
  healed as (
    insert into fleet.device_last_status as ls (
      device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, status,
      is_silent
    )
    select n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version,
      n.ip, case when n.unity_running is false then 'unity_down' else 'ok' end,
      true  -- this may take minutes; fleet.mark_silent() removes the marks that are not needed
    from behind n
    order by n.device_id  -- the order in which ingest locks them
    on conflict (device_id) do update
      set last_ts = excluded.last_ts,
        last_received_at = excluded.last_received_at,
        battery_pct = excluded.battery_pct,
        network_type = excluded.network_type,
        unity_running = excluded.unity_running,
        signal_dbm = excluded.signal_dbm,
        agent_version = excluded.agent_version,
        ip = excluded.ip,
        status = excluded.status,
        is_silent = excluded.is_silent
      where ls.last_ts is null or ls.last_ts < excluded.last_ts
    returning ls.device_id
  )
  select (select count(*) from newest), (select count(*) from healed),
    (
      select b.device_id from behind b order by b.device_id <= coalesce(v_after, 0) desc, b.device_id desc limit 1
    )
  into checked, updated, v_last;
  insert into fleet.cursors as c (cursor_name, position)
  values ('reconcile', case when updated < p_max_rows then 0 else v_last end)
  on conflict (cursor_name) do update
    set position = excluded.position
    where c.position <> excluded.position;
end
$$;

comment on function fleet.heal_last_status(interval, integer) is
  'Moves last status forward to the newest stored heartbeat within a window, for at most p_max_rows devices. Used by '
  'fleet.reconcile() and fleet.backfill_last_status().';
--! EndIncluded status/heal_last_status.sql
--! Included status/list_devices.sql
-- One page by keyset. The query is built for each call: the best index depends on the arguments, and one plan for all arguments
-- would suit none of them.
create or replace function fleet.list_devices(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
-- Read an index in order, and stop at the end of the page. Too low an estimate must not make it read the whole table.
set enable_bitmapscan = off
set max_parallel_workers_per_gather = 0
set random_page_cost = 1
as $$
declare
  v_found text := 'select ls.device_id from fleet.device_last_status ls where ls.device_id > $3';
  v_filter text := ' where true';
begin
  if p_status is not null then
    v_filter := v_filter || ' and d.status = $1';
  end if;
  if p_older_than is not null then
    v_filter := v_filter || ' and d.last_ts < now() - $2';
    v_found := v_found || ' and ls.last_ts < now() - $2';
  end if;
  if p_cohort is not null then
    v_filter := v_filter || ' and d.cohort = $5';
  end if;
  if p_alias is not null then
    v_filter := v_filter || ' and d.alias = $6';
  end if;

  if p_alias is not null then
    v_found := null;  -- at most one device, which the alias finds faster than a mark
  elsif p_status = 'clock_skewed' then
    v_found := v_found || ' and ls.status = ''clock_skewed''';
  elsif p_status = 'offline' and fleet.marks_hold() then
    v_found := v_found || ' and ls.is_silent';
  elsif p_older_than is not null and fleet.marks_hold(p_older_than) then
    -- Devices with such long intervals may be silent for that long without a mark.
    if (select max(d.heartbeat_interval) from fleet.devices d) > p_older_than / 2 then
      v_found := v_found || ' and not ls.is_silent'
        ' and ls.device_id in (select d.device_id from fleet.devices d where d.heartbeat_interval > $2 / 2)'
        ' union all ' || v_found;
    end if;
    v_found := v_found || ' and ls.is_silent';
  else
    v_found := null;
  end if;

  if v_found is null then
    return query execute
      'select d.* from fleet.device_status d' || v_filter || ' and d.device_id > $3 order by d.device_id limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;
  -- OFFSET 0 keeps the planner from joining the whole fleet to a few devices: it cannot guess how many have a status.
  return query execute 'select d.* from (' || v_found || ') found cross join lateral ('
    'select s.* from fleet.device_status s where s.device_id = found.device_id offset 0) d'
    || v_filter || ' order by found.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer, text, text) is
  'A page of fleet.device_status in order of device_id, after a given device_id. Filters by status, by time since the last '
  'heartbeat, by cohort and by alias. '
  'Example: select alias from fleet.list_devices(''offline'', ''12 minutes'');';
--! EndIncluded status/list_devices.sql
--! Included status/list_devices_legacy.sql
create or replace function fleet.list_devices_legacy(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status_legacy
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select d.*
  from fleet.device_status_legacy d
  where d.device_id > p_after
    and (p_status is null or d.status = p_status)
    and (p_older_than is null or d.last_ts < now() - p_older_than)
    and (p_cohort is null or d.cohort = p_cohort)
    and (p_alias is null or d.alias = p_alias)
  order by d.device_id
  limit p_limit;
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer, text, text) is
  'The same as fleet.list_devices(), over fleet.device_status_legacy. '
  'Example: select alias from fleet.list_devices_legacy(''offline'', ''12 minutes'');';
--! EndIncluded status/list_devices_legacy.sql
--! Included status/sample_fleet.sql
create or replace function fleet.sample_fleet() returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  delete from fleet.fleet_samples s
  where s.sampled_at < now() - interval '8 days';
  insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
  select date_bin('10 minutes', now(), '2000-01-01Z'), f.devices, f.online, f.late, f.offline, f.new, f.clock_skewed, f.unity_down
  from fleet.fleet_summary f
  where f.cohort = '(all)'
    -- Nine times out of ten the row is already there, and no device is counted.
    and not exists (select from fleet.fleet_samples s where s.sampled_at = date_bin('10 minutes', now(), '2000-01-01Z'))
  on conflict do nothing;
$$;

comment on function fleet.sample_fleet() is
  'Stores the counts of fleet.fleet_summary once every 10 minutes, for fleet.fleet_trend. Called every minute by '
  'fleet.mark_silent(). '
  'Example: select fleet.sample_fleet();';
--! EndIncluded status/sample_fleet.sql
--! Included status/unity_down.view.sql
create or replace view fleet.unity_down as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.agent_version
from fleet.device_state d
where d.said = 'unity_down' and d.status in ('online', 'late')
order by d.last_ts desc;

comment on view fleet.unity_down is
  'Devices that are online or late and report that their Unity app is not running. Example: select alias from fleet.unity_down;';
--! EndIncluded status/unity_down.view.sql
--! Included aliases/adopt_archive.sql
create or replace function fleet.adopt_archive(
  p_partition text,
  p_range_start timestamptz,
  p_range_end timestamptz,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_columns jsonb default null,
  p_columns_at timestamptz default null,
  p_checksum_version integer default 1,
  p_manifest_format integer default 1
) returns boolean
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.register_archive(
    p_partition, p_range_start, p_range_end, p_row_count, p_content_checksum, p_min_ts, p_max_ts, p_archive_url,
    p_checksum_sha256, p_archive_bytes, p_columns, p_columns_at, p_checksum_version, p_manifest_format
  );
$$;

comment on function fleet.adopt_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
) is 'Old name of fleet.register_archive(); goes in 0.3.';
--! EndIncluded aliases/adopt_archive.sql
--! Included aliases/adoption_plan.sql
create or replace function fleet.adoption_plan(
  p_source regclass,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null
) returns table (item text, detail text, rows bigint)
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select p.item, p.detail, p.rows from fleet.import_plan(p_source, p_columns, p_unknown_devices, p_oldest) p;
$$;

comment on function fleet.adoption_plan(regclass, jsonb, text, timestamptz) is 'Old name of fleet.import_plan(); goes in 0.3.';
--! EndIncluded aliases/adoption_plan.sql
--! Included aliases/confirm_adoption.sql
create or replace function fleet.confirm_adoption(p_source regclass) returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.confirm_import(p_source);
$$;

comment on function fleet.confirm_adoption(regclass) is 'Old name of fleet.confirm_import(); goes in 0.3.';
--! EndIncluded aliases/confirm_adoption.sql
--! Included aliases/forget_adoption.sql
create or replace function fleet.forget_adoption(p_source text) returns boolean
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.forget_import(p_source);
$$;

comment on function fleet.forget_adoption(text) is 'Old name of fleet.forget_import(); goes in 0.3.';
--! EndIncluded aliases/forget_adoption.sql
--! Included aliases/run_adoption.sql
create or replace procedure fleet.run_adoption(
  p_source text,
  p_batch_rows integer,
  p_pause interval,
  inout p_state text
)
language plpgsql
as $$
begin
  call fleet.run_import(p_source, p_batch_rows, p_pause, p_state);
end
$$;

comment on procedure fleet.run_adoption(text, integer, interval, text) is 'Old name of fleet.run_import(); goes in 0.3.';
--! EndIncluded aliases/run_adoption.sql
--! Included aliases/adopt_table.sql
create or replace procedure fleet.adopt_table(
  p_source regclass,
  inout p_state text default null,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null,
  p_forward boolean default null,
  p_batch_rows integer default 5000,
  p_pause interval default '20 milliseconds'
)
language plpgsql
as $$
begin
  call fleet.import_table(p_source, p_state, p_columns, p_unknown_devices, p_oldest, p_forward, p_batch_rows, p_pause);
end
$$;

comment on procedure fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval) is
  'Old name of fleet.import_table(); goes in 0.3.';
--! EndIncluded aliases/adopt_table.sql
--! Included aliases/verify_adoption.sql
create or replace procedure fleet.verify_adoption(p_source regclass, inout p_state text default null)
language plpgsql
as $$
begin
  call fleet.verify_import(p_source, p_state);
end
$$;

comment on procedure fleet.verify_adoption(regclass, text) is 'Old name of fleet.verify_import(); goes in 0.3.';
--! EndIncluded aliases/verify_adoption.sql
--! Included aliases/abandon_adoption.sql
create or replace procedure fleet.abandon_adoption(p_source regclass, inout p_state text default null)
language plpgsql
as $$
begin
  call fleet.abandon_import(p_source, p_state);
end
$$;

comment on procedure fleet.abandon_adoption(regclass, text) is 'Old name of fleet.abandon_import(); goes in 0.3.';
--! EndIncluded aliases/abandon_adoption.sql
--! Included aliases/adoption_progress.view.sql
create or replace view fleet.adoption_progress as
select * from fleet.import_progress;

comment on view fleet.adoption_progress is 'Old name of fleet.import_progress; goes in 0.3.';
--! EndIncluded aliases/adoption_progress.view.sql

-- Makes partitions from the start of the retention to premake_days ahead.
do $$
begin
  if fleet.set_up_partitions() > 0 then
    -- Nobody changes heartbeats, not even the owner. pg_partman needed these rights to lock the table; now it gives the rights
    -- that are left to the first partitions.
    revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;
    perform partman.reapply_privileges('fleet.device_heartbeats');
  end if;
end
$$;

--! Included setup/grants.sql
-- Who may do what. Everything is revoked first, so that only the grants in this file apply.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke create on schema fleet_detached from fleet_archiver;
grant usage on schema fleet_detached to fleet_archiver, fleet_reader, fleet_dba;

-- Nobody changes heartbeats, not even the owner: rows are dropped with their partition, once its archive is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.token_changes(xid8),
  fleet.recent_tokens(integer),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.record_slo(text, json),
  fleet.end_session(bytea, timestamptz),
  fleet.is_session_ended(bytea),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer, text, text),
  fleet.list_devices_legacy(text, interval, bigint, integer, text, text),
  fleet.marks_hold(interval),  -- called by the view devices_offline
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.silence_at(timestamptz),  -- called by the view fleet_silence
  fleet.postgres_started_at(),
  fleet.job_history()  -- called by the view job_health
to fleet_server, fleet_reader, fleet_dba;
-- Called by the views partition_health and storage_growth.
grant execute on function fleet.table_of(fleet.hb_partitions) to fleet_server, fleet_archiver, fleet_reader, fleet_dba;

grant execute on function
  fleet.create_device(text, text),
  fleet.revoke_device(bigint),
  fleet.rename_device(bigint, text),
  fleet.move_device(bigint, text),
  fleet.renew_token(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(timestamptz),
  -- The procedures call these with the rights of their caller. The steps run with the owner's rights; see fleet.begin_run().
  fleet.begin_run(text, interval, timestamptz),
  fleet.run_next_step(bigint, integer),
  fleet.end_run(bigint)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_planned_steps(bigint)
to fleet_server, fleet_dba;
grant execute on procedure fleet.maintain(bigint, timestamptz) to fleet_dba;

grant execute on function
  fleet.enroll_device(text, text),
  fleet.is_night_missed(timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.rollup_plan(timestamptz),
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
  fleet.set_cohort_interval(text, interval),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.accept_archive(text, text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.roll_up(date, timestamptz, boolean),
  fleet.availability_of_day(date, timestamptz, bigint[]),
  fleet.schedule_jobs(),
  fleet.wake_archiver(text),
  fleet.import_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_import(regclass),
  fleet.forget_import(text),
  fleet.refused_rows(regclass, integer),
  -- The procedures of imports call these with the rights of their caller.
  fleet.begin_import(regclass, jsonb, text, timestamptz, boolean),
  fleet.begin_verification(regclass),
  fleet.begin_abandoning(regclass),
  fleet.import_step(text, integer),
  fleet.end_import(text, text),
  fleet.check_partitions(timestamptz),
  fleet.check_ingest(timestamptz),
  fleet.check_silence(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_columns(),
  fleet.check_sessions(timestamptz),
  fleet.check_storage(timestamptz),
  fleet.check_imports(timestamptz),
  fleet.check_settings(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_dba;

grant execute on procedure
  fleet.import_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_import(regclass, text),
  fleet.abandon_import(regclass, text),
  fleet.run_import(text, integer, interval, text)
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.content_checksum(regclass, jsonb, integer),
  fleet.checksum_expression(regclass, jsonb, integer),
  fleet.archive_form(text),
  fleet.unarchivable_columns(regclass),
  fleet.map_columns(jsonb, timestamptz),
  fleet.note_columns(),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.take_index_lock(),
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.count_retired(text, text, bigint, jsonb, integer),
  fleet.record_export(text, text),
  fleet.record_upload(text, text, text, text, bigint, integer, integer),
  fleet.record_columns(text, text, jsonb, integer, integer),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.fail_restore(text, text, text),
  fleet.register_archive(
    text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
    integer
  )
to fleet_archiver;

grant select on
  fleet.device_status, fleet.device_status_legacy, fleet.devices_offline, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;
grant select on fleet.unity_down to fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.storage_history, fleet.job_health,
  fleet.fleet_silence, fleet.fleet_trend, fleet.missed_beats, fleet.silence_samples, fleet.import_progress,
  fleet.device_availability, fleet.slo
to fleet_reader, fleet_dba;
grant execute on function fleet.device_availability(date, date, bigint, timestamptz) to fleet_reader, fleet_dba;
-- For the ops page.
grant select on
  fleet.partition_health, fleet.archives, fleet.job_health, fleet.fleet_silence, fleet.fleet_trend, fleet.slo
to fleet_server;
-- Called by the view import_progress.
grant execute on function fleet.lock_holders(text) to fleet_reader, fleet_dba;
grant select on fleet.archives to fleet_archiver, fleet_verifier;
grant execute on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz) to fleet_verifier;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_items to fleet_archiver, fleet_dba;
grant select on fleet.restore_requests to fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on
  fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual,
  fleet.device_availability_daily, fleet.rolled_up_days, fleet.late_arrivals, fleet.storage_daily
to fleet_dba;
grant select on fleet.column_changes to fleet_reader, fleet_dba;
grant select on fleet.imports, fleet.import_days, fleet.import_refusals to fleet_dba;
grant select, insert, update, delete on fleet.import_devices to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep, rollups_keep, silence_window, silence_share, silence_ratio,
  silence_min_devices, ingest_gap, archive_stores, proofs_needed
) on fleet.settings to fleet_dba;

-- Old names, which go in 0.3.
grant execute on procedure
  fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_adoption(regclass, text),
  fleet.abandon_adoption(regclass, text),
  fleet.run_adoption(text, integer, interval, text)
to fleet_dba;
grant execute on function
  fleet.adoption_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_adoption(regclass),
  fleet.forget_adoption(text)
to fleet_dba;
grant execute on function fleet.adopt_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
) to fleet_archiver;
grant select on fleet.adoption_progress to fleet_reader, fleet_dba;
--! EndIncluded setup/grants.sql

-- Notes the columns; later changes are recorded in fleet.column_changes.
select fleet.note_columns();
