--! Previous: sha1:043345923fafe2a9d21343a568f6fc93b08b17ac
--! Hash: sha1:d110bbe3672e6e7a3377049dca749c7b6b185965
--! Message: heartbeats as real agents send them

-- Values that cannot be read, an agent's own values, clocks that are wrong, and devices that share a token.

create table if not exists fleet.device_unreadable_fields (
  device_id bigint not null,
  field text not null,
  times bigint not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  example text not null,
  constraint device_unreadable_fields_pkey primary key (device_id, field)
);
comment on table fleet.device_unreadable_fields is
  'Fields of heartbeats whose value could not be read, by device. Read it with fleet.unreadable_fields.';
comment on column fleet.device_unreadable_fields.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_unreadable_fields.field is
  'The field that was left out. ts, device_id or body: the whole heartbeat was refused because of it.';
comment on column fleet.device_unreadable_fields.times is 'How often.';
comment on column fleet.device_unreadable_fields.first_at is 'When it was first reported.';
comment on column fleet.device_unreadable_fields.last_at is 'When it was last reported.';
comment on column fleet.device_unreadable_fields.example is 'The value that was sent last, as JSON, cut to 64 characters.';
create index if not exists device_unreadable_fields_last_at_idx on fleet.device_unreadable_fields (last_at);
comment on index fleet.device_unreadable_fields_last_at_idx is 'For fleet.check() and for pruning by age.';

create index if not exists device_availability_daily_excess_idx on fleet.device_availability_daily (day, device_id)
  where beats > expected * 1.5 + 10;
comment on index fleet.device_availability_daily_excess_idx is
  'The few devices of a day that sent far more than expected, for fleet.check_devices().';

-- Every row changes each minute. With free space in each page these are HOT updates, and VACUUM has nothing to do.
create table if not exists fleet.fleet_counts (
  place bigint not null,
  cohort text not null,
  counted_at timestamptz not null,
  devices bigint not null,
  online bigint not null,
  late bigint not null,
  offline bigint not null,
  new bigint not null,
  clock_skewed bigint not null,
  unity_down bigint not null,
  window_start timestamptz not null,
  active bigint not null,
  gone_quiet bigint not null,
  newest_received_at timestamptz,
  ahead bigint not null,
  constraint fleet_counts_pkey primary key (place)
) with (fillfactor = 50);
comment on table fleet.fleet_counts is
  'The counts of fleet.fleet_summary and fleet.fleet_silence for a large fleet and each of its cohorts, kept by '
  'fleet.count_fleet(). Empty for a small fleet. Read it through these views.';
comment on column fleet.fleet_counts.place is
  'The order of the rows: 1 is the whole fleet, then the cohorts by name, so that no read has to sort names.';
comment on column fleet.fleet_counts.cohort is 'fleet.devices.cohort, or (all).';
comment on column fleet.fleet_counts.counted_at is 'When the fleet was counted. It is the same in all rows.';
comment on column fleet.fleet_counts.devices is 'Devices that were enrolled.';
comment on column fleet.fleet_counts.online is 'Devices that were online.';
comment on column fleet.fleet_counts.late is 'Devices that were late.';
comment on column fleet.fleet_counts.offline is 'Devices that were offline.';
comment on column fleet.fleet_counts.new is 'Devices that had not sent a heartbeat yet.';
comment on column fleet.fleet_counts.clock_skewed is 'Devices that were heard from and whose clock was wrong.';
comment on column fleet.fleet_counts.unity_down is
  'Devices that were online, late or clock_skewed and whose Unity app was down.';
comment on column fleet.fleet_counts.window_start is
  'The start of the window in which active and gone_quiet were counted. It is the same in all rows.';
comment on column fleet.fleet_counts.active is 'Devices that were not quiet at some time in the window.';
comment on column fleet.fleet_counts.gone_quiet is 'Those of the active devices that were quiet when they were counted.';
comment on column fleet.fleet_counts.newest_received_at is 'When the newest heartbeat of these devices had arrived.';
comment on column fleet.fleet_counts.ahead is
  'Devices that were last heard from further in the future than settings.max_future, because the clock of Postgres ran ahead.';

-- Views with another order of columns, and a function with another name of an argument.

-- Without CASCADE, so that Postgres names what others have made of these views. See docs/upgrade.md.
drop function if exists fleet.list_devices(text, interval, bigint, integer, text, text);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer, text, text);
drop view if exists
  fleet.devices_offline, fleet.unity_down, fleet.missed_beats, fleet.fleet_summary, fleet.device_status, fleet.device_status_legacy,
  fleet.device_state;
drop view if exists fleet.fleet_silence;
drop function if exists fleet.silence_at(timestamptz);
drop function if exists fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz);

create index if not exists device_last_status_new_idx on fleet.device_last_status (device_id) where status is null;
comment on index fleet.device_last_status_new_idx is 'Finds the devices that have not sent a heartbeat yet.';
create index if not exists devices_revoked_idx on fleet.devices (device_id) where revoked_at is not null;
comment on index fleet.devices_revoked_idx is 'Finds the devices whose token was revoked.';
create index if not exists devices_enrolled_at_idx on fleet.devices (enrolled_at);
comment on index fleet.devices_enrolled_at_idx is 'Counts the devices that were enrolled on a day, for fleet.rollup_plan().';
-- Each device has a row of last status; see fleet.add_last_status(). Only a device that was never heard from has no stored status.
insert into fleet.device_last_status (device_id, is_silent)
select d.device_id, false
from fleet.devices d
on conflict do nothing;
update fleet.device_last_status
set status = null
where last_received_at is null and status is not null;

-- The statement that stores heartbeats also authenticates them, so no server caches tokens any longer.
alter table fleet.devices add column if not exists changed_at timestamptz;
comment on column fleet.devices.changed_at is
  'When its token, its cohort or its own interval was last changed. Null if never.';
do $$
begin
  if to_regclass('fleet.token_change_log') is not null then
    update fleet.devices d
    set changed_at = l.changed_at
    from (
      select substring(c.subject from '^device:(\d+)$')::bigint as device_id, max(c.changed_at) as changed_at
      from fleet.token_change_log c
      group by 1
    ) l
    where l.device_id = d.device_id;
  end if;
end
$$;
drop trigger if exists devices_token_change on fleet.devices;
drop trigger if exists gateways_token_change on fleet.gateways;
delete from fleet.recorded_triggers where trigger_name in ('devices_token_change', 'gateways_token_change');
drop function if exists fleet.record_token_change();
drop function if exists fleet.token_changes(xid8);
drop function if exists fleet.recent_tokens(integer);
drop function if exists fleet.known_devices(bigint[]);
drop table if exists fleet.token_change_log;
drop function if exists fleet.authenticate(bytea);
drop function if exists fleet.ingest_batch(json, timestamptz);

-- Settled days: past partitions in the order of devices, without the dedupe key.
alter table fleet.hb_partitions add column if not exists settled_at timestamptz;
comment on column fleet.hb_partitions.settled_at is
  'When the partition was rewritten in the order of (device_id, ts) and closed for new rows. Null: it takes rows. See '
  'fleet.settle_partition().';

alter table fleet.settings
  add column if not exists settle boolean not null default true,
  add column if not exists settle_max_wait interval not null default '15 seconds',
  add column if not exists settle_budget interval not null default '15 minutes';
alter table fleet.settings drop constraint if exists settings_settle_max_wait_range;
alter table fleet.settings add constraint settings_settle_max_wait_range check (settle_max_wait > '0');
alter table fleet.settings drop constraint if exists settings_settle_budget_range;
alter table fleet.settings
  add constraint settings_settle_budget_range check (settle_budget > '0' and settle_budget <= '30 minutes');
comment on column fleet.settings.settle is
  'Whether the night settles days for which no heartbeat can come any more: stores them in the order of devices and drops their '
  'dedupe key. False: it settles no further day. Days that are settled stay so; fleet.unsettle_partition() opens one.';
comment on column fleet.settings.settle_max_wait is
  'A day is settled only if its readers will probably wait no longer than this. Measured on two shared cores: 400,000 rows a '
  'second.';
comment on column fleet.settings.settle_budget is
  'For how long a night may go on settling days. It finishes the day that it has begun. The hourly maintenance waits for it.';

alter table fleet.hb_partitions add column if not exists rows_sha256 text;
comment on column fleet.hb_partitions.rows_sha256 is
  'SHA-256 of the rows of the archive as CSV, in hex; its manifest has the SQL for it. Null for an archive of manifest format 1 or '
  '2, which has a content_checksum instead.';
comment on column fleet.hb_partitions.content_checksum is
  'For an archive of manifest format 1 or 2: a checksum of the rows that does not depend on their order or format; see '
  'fleet.content_checksum().';
comment on column fleet.hb_partitions.rows_hash is
  'The row hash of fleet.count_rows() of the retired table when its rows were counted. Null for an archive from before 0.2.';
alter table fleet.hb_partitions
  drop constraint if exists hb_partitions_archived_is_proven,
  add constraint hb_partitions_archived_is_proven check (
    state not in ('archived', 'dropped', 'restored')
    or is_proven_empty
    or (
      checksum_sha256 is not null and (rows_sha256 is not null or content_checksum is not null) and proven_at is not null
      and archive_url is not null and row_count is not null
    )
  ),
  drop constraint if exists hb_partitions_rows_sha256_form,
  add constraint hb_partitions_rows_sha256_form check (rows_sha256 ~ '^[0-9a-f]{64}$');

-- Functions that have other parameters or columns now.
drop function if exists fleet.count_retired(text, text, bigint, jsonb, integer);
drop function if exists fleet.record_upload(text, text, text, text, bigint, integer, integer);
drop function if exists fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz);
drop function if exists fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz);
drop function if exists fleet.compare_with_archive(text);
drop function if exists fleet.finish_restore(text, text);
drop function if exists fleet.register_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
);
drop function if exists fleet.claim_restore(text, interval);
drop function if exists fleet.claim_partition(text, interval);
drop function if exists fleet.rows_hash(regclass);



-- Erasures: devices that are removed with everything that they sent.
create table if not exists fleet.erasures (
  erasure_id bigint generated always as identity,
  device_id bigint not null,
  requested_at timestamptz not null default now(),
  requested_by text not null default session_user,
  reason text not null,
  state text not null default 'running',
  waits_for text[],
  rows_other bigint not null default 0,
  finished_at timestamptz,
  last_error text,
  constraint erasures_pkey primary key (erasure_id),
  constraint erasures_device_id_key unique (device_id),
  constraint erasures_state_known check (state in ('running', 'done')),
  constraint erasures_done_is_finished check (state <> 'done' or finished_at is not null)
);
comment on table fleet.erasures is
  'Every device that was erased with fleet.erase_device(), never pruned. The id alone says nothing about a device whose data is '
  'gone; it is needed to erase the device again from a backup. Read it with fleet.erasure_progress.';
comment on column fleet.erasures.erasure_id is 'The number of the erasure, which messages name instead of the device.';
comment on column fleet.erasures.device_id is 'The id that the device had. Ids are never given to another device.';
comment on column fleet.erasures.requested_at is 'When the erasure was requested.';
comment on column fleet.erasures.requested_by is 'The login that requested it.';
comment on column fleet.erasures.reason is 'Why, as the login said.';
comment on column fleet.erasures.state is
  'running, or done: no table has a row of the device, and no archive and no other object of the store, as far as the database '
  'knows them.';
comment on column fleet.erasures.waits_for is
  'The transactions that had begun when the device was deleted and may still write heartbeats of it. Null: not looked up yet.';
comment on column fleet.erasures.rows_other is 'How many rows were deleted that are no heartbeats.';
comment on column fleet.erasures.finished_at is 'When it was done.';
comment on column fleet.erasures.last_error is 'What the erasure as a whole waits for; null: nothing.';

create table if not exists fleet.erasure_items (
  erasure_id bigint not null,
  partition_name text not null,
  online_at timestamptz,
  rows_online bigint not null default 0,
  recorded_at timestamptz,
  archive_at timestamptz,
  rows_archived bigint not null default 0,
  replaced jsonb,
  leftovers text[],
  confirmed_at timestamptz,
  confirmed_by text,
  attempts integer not null default 0,
  next_attempt_at timestamptz,
  last_error text,
  constraint erasure_items_pkey primary key (erasure_id, partition_name),
  constraint erasure_items_erasure_id_fkey foreign key (erasure_id) references fleet.erasures (erasure_id) on delete cascade,
  constraint erasure_items_partition_name_fkey foreign key (partition_name) references fleet.hb_partitions (partition_name)
    on delete cascade
);
comment on table fleet.erasure_items is 'The partitions and archives of each erasure.';
comment on column fleet.erasure_items.erasure_id is 'fleet.erasures.erasure_id.';
comment on column fleet.erasure_items.partition_name is 'fleet.hb_partitions.partition_name.';
comment on column fleet.erasure_items.online_at is 'When its table had no heartbeat of the device any more; null: not yet.';
comment on column fleet.erasure_items.rows_online is 'How many heartbeats were deleted from its table.';
comment on column fleet.erasure_items.recorded_at is
  'When a revision of its archive without the device was proven and recorded. The object that it replaced may still be there.';
comment on column fleet.erasure_items.archive_at is 'When the store had no object with the device any more; null: not yet.';
comment on column fleet.erasure_items.rows_archived is 'How many heartbeats the archive had of the device.';
comment on column fleet.erasure_items.replaced is
  'The archive that the revision replaced: archive_url, checksum_sha256, archive_bytes, row_count.';
comment on column fleet.erasure_items.leftovers is 'The keys of the objects that are deleted now that the revision is recorded.';
comment on column fleet.erasure_items.confirmed_at is
  'When a second login compared the revision with the object that it replaced; null: not yet. See settings.proofs_needed.';
comment on column fleet.erasure_items.confirmed_by is 'The login that confirmed it.';
comment on column fleet.erasure_items.attempts is 'How often it has failed in a row.';
comment on column fleet.erasure_items.next_attempt_at is 'When it is tried again; null: at once.';
comment on column fleet.erasure_items.last_error is 'Why the last attempt failed.';
create index if not exists erasure_items_left_idx on fleet.erasure_items (partition_name) where archive_at is null;
comment on index fleet.erasure_items_left_idx is 'The archives that erasures have not been through yet.';
create index if not exists erasure_items_partition_name_idx on fleet.erasure_items (partition_name);
comment on index fleet.erasure_items_partition_name_idx is 'For the foreign key.';

-- Rows that earlier deletions of devices left.
delete from fleet.device_last_status s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.device_commands s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.command_dispatch_log s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.device_unreadable_fields s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.device_availability_daily s where not exists (select from fleet.devices d where d.device_id = s.device_id);
delete from fleet.late_arrivals s where not exists (select from fleet.devices d where d.device_id = s.device_id);

-- Transitions: each change of a device's status, once.
alter table fleet.settings add column if not exists transitions_keep interval not null default '400 days';
alter table fleet.settings drop constraint if exists settings_transitions_keep_range;
alter table fleet.settings
  add constraint settings_transitions_keep_range check (transitions_keep >= '1 day' and transitions_keep <= '10 years');
comment on column fleet.settings.transitions_keep is
  'How long fleet.device_transitions and ended fleet.incidents are kept: 1 day to 10 years.';

alter table fleet.device_last_status
  add column if not exists noted_status text,
  add column if not exists noted_since timestamptz,
  add column if not exists late_after_s integer,
  add column if not exists gap_from timestamptz,
  add column if not exists gap_next_in_s integer,
  add column if not exists gap_stopping text,
  add column if not exists gap_battery_pct smallint,
  add column if not exists gap_signal_dbm smallint,
  add column if not exists noted_reason text;
comment on column fleet.device_last_status.gap_stopping is 'The stopping that held until the newest heartbeat; see gap_next_in_s.';
comment on column fleet.device_last_status.gap_battery_pct is 'The battery_pct that held until the newest heartbeat.';
comment on column fleet.device_last_status.gap_signal_dbm is 'The signal_dbm that held until the newest heartbeat.';
comment on column fleet.device_last_status.gap_next_in_s is
  'The next_in_s that held until the newest heartbeat. It says whether the device was late in the gap before it.';
comment on column fleet.device_last_status.noted_reason is 'The reason of that transition, while the device is late or offline.';
comment on column fleet.device_last_status.noted_status is
  'The status of the device by its newest transition: new, online, late, offline, clock_skewed, unity_down or revoked. Null: not '
  'looked at since the store has transitions.';
comment on column fleet.device_last_status.noted_since is 'Since when it has had noted_status; null if unknown.';
comment on column fleet.device_last_status.late_after_s is
  'The shortest silence, in seconds, after which this device can be late: fleet.late_after() of its own interval. So ingest sees '
  'without looking at fleet.devices that a heartbeat came late.';
comment on column fleet.device_last_status.gap_from is
  'When the device was heard from before its newest heartbeat, if that was longer ago than late_after_s; otherwise null.';

create table if not exists fleet.incidents (
  incident_id bigint generated always as identity,
  kind text not null,
  subject text not null,
  began_at timestamptz not null,
  seen_at timestamptz not null default now(),
  ended_at timestamptz,
  devices integer not null default 0,
  constraint incidents_pkey primary key (incident_id),
  constraint incidents_kind_known check (kind in ('ingest', 'cohort', 'network'))
);
comment on table fleet.incidents is
  'Times at which many devices fell silent together: heartbeats could not be stored (ingest), or most of a cohort or of a network '
  'went silent. People are told once of the incident and not of each device.';
comment on column fleet.incidents.incident_id is 'The number of the incident.';
comment on column fleet.incidents.kind is 'ingest, cohort or network.';
comment on column fleet.incidents.subject is 'The cohort; the network as CIDR; or (all) for ingest.';
comment on column fleet.incidents.began_at is 'When the first of its devices was last heard from.';
comment on column fleet.incidents.seen_at is 'When it was seen.';
comment on column fleet.incidents.ended_at is 'When at least half of its devices were back; null while it lasts.';
comment on column fleet.incidents.devices is 'How many devices had fallen silent when it was seen.';
create index if not exists incidents_open_idx on fleet.incidents (kind, subject) where ended_at is null;
comment on index fleet.incidents_open_idx is
  'The open incidents. A subject can have several: one of which some devices never come back, and a newer one.';

create table if not exists fleet.device_transitions (
  transition_id bigint generated always as identity,
  position bigint not null,
  device_id bigint not null,
  cohort text not null,
  at timestamptz not null,
  since timestamptz not null,
  event text not null,
  status text not null,
  previous_status text not null,
  previous_since timestamptz,
  previous_for interval generated always as (since - previous_since) stored,
  reason text,
  incident_id bigint,
  battery_pct smallint,
  network_type text,
  agent_version text,
  constraint device_transitions_pkey primary key (transition_id),
  constraint device_transitions_event_known
    check (event in ('online', 'late', 'offline', 'clock_skewed', 'unity_down', 'back', 'revoked'))
);
comment on table fleet.device_transitions is
  'Each change of a device''s status, exactly once, in the order of the device''s life. Kept for settings.transitions_keep.';
comment on column fleet.device_transitions.transition_id is
  'The number of the transition. Of one device, later ones have higher numbers.';
comment on column fleet.device_transitions.position is
  'Its place in the feed: by (position, transition_id), every transition that becomes visible comes after those that a reader of '
  'fleet.transitions_after() has seen.';
comment on column fleet.device_transitions.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_transitions.cohort is 'Its cohort at that time.';
comment on column fleet.device_transitions.at is 'When it was seen.';
comment on column fleet.device_transitions.since is 'Since when the new status has held.';
comment on column fleet.device_transitions.event is
  'What happened: the new status, or back if the device was offline or revoked and is heard from again.';
comment on column fleet.device_transitions.status is 'The new status: online, late, offline, clock_skewed, unity_down or revoked.';
comment on column fleet.device_transitions.previous_status is 'The status before: the same words, or new.';
comment on column fleet.device_transitions.previous_since is 'Since when it had the status before; null if unknown.';
comment on column fleet.device_transitions.previous_for is 'How long it had the status before; null if unknown.';
comment on column fleet.device_transitions.reason is
  'Why it is late or offline, and of back, why it was: ingest_down, cohort_silent, network_silent, shutdown, reboot, update, app, '
  'sleep, battery, signal or unknown. See fleet.silence_reason(). Null of other events.';
comment on column fleet.device_transitions.incident_id is 'fleet.incidents.incident_id, if it fell silent together with others.';
comment on column fleet.device_transitions.battery_pct is 'The battery charge that it reported last, in percent.';
comment on column fleet.device_transitions.network_type is 'The network that it reported last.';
comment on column fleet.device_transitions.agent_version is 'The version of its agent.';
create index if not exists device_transitions_device_idx on fleet.device_transitions (device_id, transition_id desc);
comment on index fleet.device_transitions_device_idx is 'The history of a device.';
create index if not exists device_transitions_position_idx on fleet.device_transitions (position, transition_id);
comment on index fleet.device_transitions_position_idx is 'The feed.';
create index if not exists device_transitions_at_idx on fleet.device_transitions (at);
comment on index fleet.device_transitions_at_idx is 'What changed in the last hour, and what is pruned.';

create index if not exists device_transitions_incident_idx on fleet.device_transitions (incident_id)
  where incident_id is not null;
comment on index fleet.device_transitions_incident_idx is 'The devices of an incident.';

create table if not exists fleet.changed_devices (
  device_id bigint not null,
  constraint changed_devices_pkey primary key (device_id)
);
comment on table fleet.changed_devices is
  'Devices that were revoked or got another interval a moment ago, until the minute''s job has seen them. See '
  'fleet.note_changed_devices().';
comment on column fleet.changed_devices.device_id is 'fleet.devices.device_id.';

create table if not exists fleet.transition_feed (
  is_only_row boolean not null default true,
  base bigint not null default 0,
  cluster text not null default '',
  constraint transition_feed_pkey primary key (is_only_row),
  constraint transition_feed_only_row check (is_only_row)
);
comment on table fleet.transition_feed is 'Where the positions of the feed of transitions begin; see fleet.feed_base().';
comment on column fleet.transition_feed.is_only_row is 'Always true: there is one row.';
comment on column fleet.transition_feed.base is 'What is added to the id of a transaction.';
comment on column fleet.transition_feed.cluster is 'The cluster and the timeline for which base holds; empty: none yet.';
insert into fleet.transition_feed default values on conflict do nothing;

-- Webhooks: who is told of transitions and incidents, and the messages to them.
alter table fleet.settings add column if not exists webhook_keep interval not null default '30 days';
alter table fleet.settings drop constraint if exists settings_webhook_keep_range;
alter table fleet.settings
  add constraint settings_webhook_keep_range check (webhook_keep >= '1 day' and webhook_keep <= '10 years');
comment on column fleet.settings.webhook_keep is
  'How long messages to webhooks are kept after they were sent, dropped or given up: 1 day to 10 years.';

create table if not exists fleet.webhooks (
  webhook_id bigint generated always as identity,
  webhook_name text not null,
  url text not null,
  format text not null default 'json',
  events text[] not null,
  cohort text,
  grace interval not null default '2 minutes',
  repeat_after interval,
  secret text not null,
  old_secret text,
  old_secret_until timestamptz,
  created_at timestamptz not null default now(),
  created_by text not null default session_user,
  paused_at timestamptz,
  failures integer not null default 0,
  hold_until timestamptz,
  last_success_at timestamptz,
  last_error_at timestamptz,
  last_error text,
  last_status integer,
  constraint webhooks_pkey primary key (webhook_id),
  constraint webhooks_name_key unique (webhook_name),
  constraint webhooks_format_known check (format in ('json', 'slack', 'teams', 'ntfy', 'alertmanager')),
  constraint webhooks_events_any check (cardinality(events) > 0),
  constraint webhooks_grace_range check (grace >= '0' and grace <= '1 day'),
  constraint webhooks_repeat_after_range check (repeat_after >= '1 minute' and repeat_after <= '30 days')
);
comment on table fleet.webhooks is
  'The URLs that are told what happens to devices. fleet.webhook_health shows them without their secrets.';
comment on column fleet.webhooks.webhook_id is 'Its number.';
comment on column fleet.webhooks.webhook_name is 'Its name, as in the calls.';
comment on column fleet.webhooks.url is 'Where messages are sent. Often secret itself, as with Slack.';
comment on column fleet.webhooks.format is 'json, slack, teams, ntfy or alertmanager.';
comment on column fleet.webhooks.events is 'What it is told; see fleet.webhook_events().';
comment on column fleet.webhooks.cohort is 'The only cohort that it is told of; null: the whole fleet.';
comment on column fleet.webhooks.grace is 'What is over within this time is not told.';
comment on column fleet.webhooks.repeat_after is 'After which time a reminder is sent while the trouble lasts; null: none.';
comment on column fleet.webhooks.secret is 'Signs its messages. In clear, because a signature needs it; no role but the owner reads it.';
comment on column fleet.webhooks.old_secret is 'The secret before, which signs too until old_secret_until.';
comment on column fleet.webhooks.old_secret_until is 'Until when the old secret signs; null: there is none.';
comment on column fleet.webhooks.created_at is 'When it was created.';
comment on column fleet.webhooks.created_by is 'The login that created it.';
comment on column fleet.webhooks.paused_at is 'When it was paused; null if it is not.';
comment on column fleet.webhooks.failures is 'How often in a row its receiver failed; 0 if it accepted the newest message.';
comment on column fleet.webhooks.hold_until is 'Until when nothing is sent, because the receiver failed.';
comment on column fleet.webhooks.last_success_at is 'When its receiver last accepted a message, to the second.';
comment on column fleet.webhooks.last_error_at is 'When an attempt last failed.';
comment on column fleet.webhooks.last_error is 'Why.';
comment on column fleet.webhooks.last_status is 'The HTTP status of that attempt; null if there was no answer.';

create table if not exists fleet.webhook_deliveries (
  delivery_id bigint generated always as identity,
  message_id text not null default 'msg_' || replace(gen_random_uuid()::text, '-', ''),
  webhook_id bigint not null,
  device_id bigint,
  incident_id bigint,
  transition_id bigint,
  event text not null,
  kind text not null,
  first_id text,
  is_open boolean not null default false,
  reminders integer not null default 0,
  reminded_at timestamptz,
  body jsonb not null,
  made_at timestamptz not null default now(),
  due_at timestamptz not null,
  state text not null default 'pending',
  attempts integer not null default 0,
  next_attempt_at timestamptz not null,
  lease_owner text,
  delivered_at timestamptz,
  last_status integer,
  last_error text,
  constraint webhook_deliveries_pkey primary key (delivery_id),
  constraint webhook_deliveries_message_key unique (message_id),
  constraint webhook_deliveries_webhook_fkey foreign key (webhook_id) references fleet.webhooks on delete cascade,
  constraint webhook_deliveries_kind_known check (kind in ('first', 'change', 'reminder', 'recovery', 'test', 'replay')),
  constraint webhook_deliveries_state_known check (state in ('pending', 'delivered', 'dead', 'dropped'))
);
comment on table fleet.webhook_deliveries is
  'The outbox: each message to a webhook, written in the transaction that decided it, and what became of it. Kept for '
  'settings.webhook_keep.';
comment on column fleet.webhook_deliveries.delivery_id is 'Its number. The messages about a device are sent in this order.';
comment on column fleet.webhook_deliveries.message_id is
  'The id that the receiver sees, the same each time the message is sent. Random and no number: after a restore from a backup '
  'numbers would be given again, and receivers would ignore the messages.';
comment on column fleet.webhook_deliveries.webhook_id is 'fleet.webhooks.webhook_id.';
comment on column fleet.webhook_deliveries.device_id is 'The device that it is about; null of incidents and tests.';
comment on column fleet.webhook_deliveries.incident_id is 'The incident that it is about; null of devices and tests.';
comment on column fleet.webhook_deliveries.transition_id is 'The transition that it tells; null of incidents and tests.';
comment on column fleet.webhook_deliveries.event is 'One of fleet.webhook_events(), or test.';
comment on column fleet.webhook_deliveries.kind is
  'first: a trouble, or what else is told; change: the device is in another trouble now; reminder: the trouble lasts; recovery: it '
  'is over; test; replay: told again because somebody asked.';
comment on column fleet.webhook_deliveries.first_id is 'message_id of the first message of the trouble; null of the first itself.';
comment on column fleet.webhook_deliveries.is_open is 'Of a first message: whether its trouble lasts.';
comment on column fleet.webhook_deliveries.reminders is 'Of a first message: how many reminders there were.';
comment on column fleet.webhook_deliveries.reminded_at is 'Of a first message: when the newest reminder was made.';
comment on column fleet.webhook_deliveries.body is 'What is sent, before it is written in the format of the webhook.';
comment on column fleet.webhook_deliveries.made_at is 'When it was queued.';
comment on column fleet.webhook_deliveries.due_at is 'When it is sent at the earliest: after the grace. It is tried for three days from then on.';
comment on column fleet.webhook_deliveries.state is
  'pending; delivered; dead: it could not be sent for three days; or dropped: what it told was over before it was due.';
comment on column fleet.webhook_deliveries.attempts is 'How often it was sent, or was about to be.';
comment on column fleet.webhook_deliveries.next_attempt_at is 'When it is sent next; while a notifier is sending it, when its lease ends.';
comment on column fleet.webhook_deliveries.lease_owner is 'The notifier that is sending it; null: none.';
comment on column fleet.webhook_deliveries.delivered_at is 'When the receiver accepted it.';
comment on column fleet.webhook_deliveries.last_status is 'The HTTP status of the newest attempt; null if there was no answer.';
comment on column fleet.webhook_deliveries.last_error is 'Why the newest attempt failed, or why it was dropped.';
create index if not exists webhook_deliveries_waiting_device_idx on fleet.webhook_deliveries (webhook_id, device_id, delivery_id)
  where state = 'pending' and device_id is not null;
comment on index fleet.webhook_deliveries_waiting_device_idx is 'Whether an earlier message about the device is waiting.';
create index if not exists webhook_deliveries_waiting_incident_idx
  on fleet.webhook_deliveries (webhook_id, incident_id, delivery_id) where state = 'pending' and incident_id is not null;
comment on index fleet.webhook_deliveries_waiting_incident_idx is 'Whether an earlier message about the incident is waiting.';
create unique index if not exists webhook_deliveries_open_idx on fleet.webhook_deliveries (webhook_id, device_id)
  where is_open and device_id is not null;
comment on index fleet.webhook_deliveries_open_idx is 'At most one open trouble of a device and webhook.';
create unique index if not exists webhook_deliveries_incident_idx on fleet.webhook_deliveries (incident_id, webhook_id)
  where kind = 'first' and incident_id is not null;
comment on index fleet.webhook_deliveries_incident_idx is 'A webhook is told of an incident once.';
create index if not exists webhook_deliveries_first_idx on fleet.webhook_deliveries (first_id) where first_id is not null;
comment on index fleet.webhook_deliveries_first_idx is 'The reminders and the recovery of a trouble.';
create index if not exists webhook_deliveries_dead_idx on fleet.webhook_deliveries (webhook_id) where state = 'dead';
comment on index fleet.webhook_deliveries_dead_idx is 'The dead letters.';
create index if not exists webhook_deliveries_made_idx on fleet.webhook_deliveries (made_at);
comment on index fleet.webhook_deliveries_made_idx is 'What is pruned.';
create index if not exists webhook_deliveries_device_idx on fleet.webhook_deliveries (device_id) where device_id is not null;
comment on index fleet.webhook_deliveries_device_idx is 'What is erased with a device, and the messages about it.';

create table if not exists fleet.notifiers (
  worker text not null,
  version text not null,
  started_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  constraint notifiers_pkey primary key (worker)
);
comment on table fleet.notifiers is 'The notifiers, and when each of them last reported.';
comment on column fleet.notifiers.worker is 'The name of the process: its host and pid.';
comment on column fleet.notifiers.version is 'The version of the notifier.';
comment on column fleet.notifiers.started_at is 'When it first reported.';
comment on column fleet.notifiers.last_seen_at is 'When it last reported.';

insert into fleet.counters (counter) values
  ('hb_webhook_delivered_total'), ('hb_webhook_failed_total'), ('hb_webhook_dead_total')
on conflict do nothing;

create index if not exists device_transitions_cohort_idx on fleet.device_transitions (cohort, position, transition_id);
comment on index fleet.device_transitions_cohort_idx is 'The feed of a cohort.';

create index if not exists webhook_deliveries_next_idx on fleet.webhook_deliveries (webhook_id, next_attempt_at, delivery_id)
  where state = 'pending';
comment on index fleet.webhook_deliveries_next_idx is 'What is due, in the order in which it is sent.';
create index if not exists webhook_deliveries_leased_idx on fleet.webhook_deliveries (webhook_id)
  where state = 'pending' and lease_owner is not null;
comment on index fleet.webhook_deliveries_leased_idx is 'What is being sent.';
create index if not exists webhook_deliveries_trouble_idx on fleet.webhook_deliveries (webhook_id, delivery_id) where is_open;
comment on index fleet.webhook_deliveries_trouble_idx is 'The troubles that last, which reminders tell again.';
create index if not exists webhook_deliveries_webhook_idx on fleet.webhook_deliveries (webhook_id);
comment on index fleet.webhook_deliveries_webhook_idx is 'What goes with a webhook that is removed.';

-- Who may call what, who is logged in, and who did what.

create table if not exists fleet.api_credentials (
  key_id bigint generated always as identity,
  key_name text not null,
  token_hash bytea not null,
  previous_hash bytea,
  previous_until timestamptz,
  scopes text[] not null,
  cohorts text[],
  created_at timestamptz not null default now(),
  created_by text not null,
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz,
  last_address text,
  constraint api_credentials_pkey primary key (key_id),
  constraint api_credentials_name_unique unique (key_name),
  constraint api_credentials_token_hash_unique unique (token_hash),
  constraint api_credentials_previous_hash_unique unique (previous_hash),
  constraint api_credentials_scopes_known
    check (scopes <@ array['read', 'metrics', 'enroll', 'command', 'operate'] and cardinality(scopes) > 0),
  constraint api_credentials_bound_scopes
    check (cohorts is null or cardinality(cohorts) > 0 and not scopes && array['metrics', 'operate'])
);
comment on table fleet.api_credentials is 'API keys, as hashes. Read it with fleet.api_keys.';
comment on column fleet.api_credentials.key_id is 'The number of the key.';
comment on column fleet.api_credentials.key_name is 'The name of the key, as in fleet.audit_log and in the metrics. Unique, revoked keys included.';
comment on column fleet.api_credentials.token_hash is 'SHA-256 of the key. The key itself is not stored.';
comment on column fleet.api_credentials.previous_hash is 'SHA-256 of the key before the last rotation.';
comment on column fleet.api_credentials.previous_until is 'Until when the key from before the last rotation is valid, too.';
comment on column fleet.api_credentials.scopes is 'What the key may do: read, metrics, enroll, command, operate.';
comment on column fleet.api_credentials.cohorts is 'The cohorts whose devices the key knows; null: all.';
comment on column fleet.api_credentials.created_at is 'When the key was created.';
comment on column fleet.api_credentials.created_by is 'Who created it, as in fleet.audit_log.actor.';
comment on column fleet.api_credentials.expires_at is 'When the key stops by itself; null: never.';
comment on column fleet.api_credentials.revoked_at is 'When the key was revoked; null while it was not.';
comment on column fleet.api_credentials.last_used_at is 'When the key was last used, to the minute.';
comment on column fleet.api_credentials.last_address is 'The address from which it was last used.';

create table if not exists fleet.sessions (
  session_id bigint generated always as identity,
  session_hash bytea not null,
  actor text not null,
  login text not null,
  key_id bigint,
  key_hash bytea,
  scopes text[] not null,
  cohorts text[],
  address text,
  user_agent text,
  started_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  ends_at timestamptz not null,
  ended_at timestamptz,
  constraint sessions_pkey primary key (session_id),
  constraint sessions_hash_unique unique (session_hash),
  constraint sessions_hash_is_sha256 check (length(session_hash) = 32),
  constraint sessions_login_known check (login in ('admin_key', 'api_key', 'oidc')),
  constraint sessions_key_id_fkey foreign key (key_id) references fleet.api_credentials (key_id) on delete cascade
);
comment on table fleet.sessions is 'Logins to the ops page. Read those that are open with fleet.open_sessions.';
comment on column fleet.sessions.session_id is 'The number of the session.';
comment on column fleet.sessions.session_hash is
  'SHA-256 of the text in the cookie (of ADMIN_KEY sessions without its signature), so that nobody can log in with it.';
comment on column fleet.sessions.actor is 'Who logged in: a person, the name of an API key, or ADMIN_KEY.';
comment on column fleet.sessions.login is 'How: admin_key, api_key or oidc (OpenID Connect).';
comment on column fleet.sessions.key_id is 'The API key with which the session was opened. It ends with the key.';
comment on column fleet.sessions.key_hash is 'SHA-256 of that key. The session ends when the key is replaced.';
comment on column fleet.sessions.scopes is 'What the session may do, as decided at login. With an API key, the scopes of the key count.';
comment on column fleet.sessions.cohorts is 'The cohorts that the session knows; null: all.';
comment on column fleet.sessions.address is 'The address from which somebody logged in.';
comment on column fleet.sessions.user_agent is 'The browser, as it describes itself.';
comment on column fleet.sessions.started_at is 'When somebody logged in.';
comment on column fleet.sessions.last_seen_at is 'When the session was last used, to the minute.';
comment on column fleet.sessions.ends_at is 'When the session ends by itself.';
comment on column fleet.sessions.ended_at is 'When it was ended by a logout or by somebody; null while it was not.';
create index if not exists sessions_ends_at_idx on fleet.sessions (ends_at);
comment on index fleet.sessions_ends_at_idx is 'For pruning by age.';
create index if not exists sessions_key_id_idx on fleet.sessions (key_id);
comment on index fleet.sessions_key_id_idx is 'The sessions of an API key.';
do $$
begin
  if to_regclass('fleet.ended_sessions') is not null then
    -- Sessions that were ended stay ended.
    insert into fleet.sessions (session_hash, actor, login, scopes, ends_at, ended_at)
    select e.session_hash, 'ADMIN_KEY', 'admin_key', array['read', 'metrics', 'enroll', 'command', 'operate'], e.ends_at, now()
    from fleet.ended_sessions e
    on conflict do nothing;
    drop table fleet.ended_sessions;
  end if;
end
$$;
drop function if exists fleet.is_session_ended(bytea);

create table if not exists fleet.audit_log (
  audit_id bigint generated always as identity,
  at timestamptz not null default now(),
  actor text not null,
  how text not null,
  action text not null,
  target text,
  before jsonb,
  after jsonb,
  request_id text,
  address text,
  constraint audit_log_pkey primary key (audit_id),
  constraint audit_log_how_known check (how in ('key', 'session', 'sql', 'job'))
);
comment on table fleet.audit_log is
  'Who did what. Each row was written in the transaction of its deed. Rows can only be added; fleet.prune() deletes those that '
  'are older than settings.audit_keep.';
comment on column fleet.audit_log.audit_id is 'The order of the rows.';
comment on column fleet.audit_log.at is 'When it was done.';
comment on column fleet.audit_log.actor is 'Who did it: the name of an API key, a person, ADMIN_KEY, or a login of Postgres.';
comment on column fleet.audit_log.how is
  'key: a call to the HTTP API. session: the ops page. sql: a login of Postgres. job: pg_cron.';
comment on column fleet.audit_log.action is 'What was done, such as device.revoked or setting.changed.';
comment on column fleet.audit_log.target is 'What it was done to, such as device:42 or setting:retention.';
comment on column fleet.audit_log.before is 'What was before, where something was changed.';
comment on column fleet.audit_log.after is 'What is now. Keys, tokens and passwords are never in it.';
comment on column fleet.audit_log.request_id is 'The X-Request-Id of the HTTP request.';
comment on column fleet.audit_log.address is 'The address of the client.';
create index if not exists audit_log_at_idx on fleet.audit_log (at);
comment on index fleet.audit_log_at_idx is 'For pruning by age.';
create index if not exists audit_log_target_idx on fleet.audit_log (target, at);
comment on index fleet.audit_log_target_idx is 'What happened to one thing.';
create index if not exists audit_log_actor_idx on fleet.audit_log (actor, at);
comment on index fleet.audit_log_actor_idx is 'What somebody did.';
create index if not exists audit_log_action_idx on fleet.audit_log (action, at);
comment on index fleet.audit_log_action_idx is 'When something was done, and by whom.';

alter table fleet.settings
  add column if not exists audit_keep interval not null default interval '400 days',
  drop constraint if exists settings_audit_keep_positive,
  add constraint settings_audit_keep_positive check (audit_keep >= interval '1 day');
comment on column fleet.settings.audit_keep is 'How long rows of fleet.audit_log are kept online.';
do $$
begin
  if (select c.relkind from pg_class c where c.oid = to_regclass('fleet.settings_audit')) = 'r' then
    insert into fleet.audit_log (at, actor, how, action, target, before, after)
    select a.changed_at, a.changed_by, 'sql',
      case
        when a.setting like 'webhook:%' then 'webhook.changed'
        when a.setting like 'cohort_interval:%' then 'cohort_interval.changed'
        else 'setting.changed'
      end,
      case when a.setting ~ '^(webhook|cohort_interval):' then a.setting else 'setting:' || a.setting end,
      to_jsonb(a.old_value), to_jsonb(a.new_value)
    from fleet.settings_audit a
    order by a.audit_id;
    drop table fleet.settings_audit;
  end if;
end
$$;
alter table fleet.settings add column if not exists audit_archive boolean not null default false;
comment on column fleet.settings.audit_archive is
  'Whether each past month of fleet.audit_log goes to the archive. Then no row is deleted that is not there.';
create table if not exists fleet.audit_archives (
  month date,
  url text,
  sha256 text,
  bytes bigint,
  rows bigint,
  rows_sha256 text,
  archived_at timestamptz,
  wanted integer not null default 1,
  done integer not null default 0,
  pruned_at timestamptz,
  attempts integer not null default 0,
  next_attempt_at timestamptz,
  last_error text,
  lease_owner text,
  lease_until timestamptz,
  constraint audit_archives_pkey primary key (month),
  constraint audit_archives_whole_months check (extract(day from month) = 1),
  constraint audit_archives_proven
    check (done = 0 or (url is not null and sha256 is not null and rows is not null and archived_at is not null))
);
comment on table fleet.audit_archives is 'The months of fleet.audit_log in the archive, each in one Parquet file.';
comment on column fleet.audit_archives.month is 'The first day of the month, in UTC.';
comment on column fleet.audit_archives.url is 'Where the file is.';
comment on column fleet.audit_archives.sha256 is 'SHA-256 of the file.';
comment on column fleet.audit_archives.bytes is 'Its size.';
comment on column fleet.audit_archives.rows is 'How many rows it has.';
comment on column fleet.audit_archives.rows_sha256 is
  'SHA-256 of its rows as CSV, by Postgres and, from the file that was read back, by DuckDB.';
comment on column fleet.audit_archives.archived_at is 'When it was read back and recorded.';
comment on column fleet.audit_archives.wanted is 'The revision that is to be archived. It grows when rows of the month change.';
comment on column fleet.audit_archives.done is 'The revision that is archived; 0: none.';
comment on column fleet.audit_archives.pruned_at is 'When its rows were deleted online; null while they are there.';
comment on column fleet.audit_archives.attempts is 'How often in a row archiving it has failed.';
comment on column fleet.audit_archives.next_attempt_at is 'When it is tried again.';
comment on column fleet.audit_archives.last_error is 'Why it failed.';
comment on column fleet.audit_archives.lease_owner is 'The archiver that works on it.';
comment on column fleet.audit_archives.lease_until is 'When another archiver may take it.';
drop function if exists fleet.end_session(bytea, timestamptz);
drop function if exists fleet.audit_webhook(text, text, text);
drop function if exists fleet.transitions_of(bigint, bigint, integer);

-- Logins of Postgres that see only the devices of their cohorts.

create table if not exists fleet.readers (
  reader text not null,
  cohorts text[] not null,
  created_at timestamptz not null default now(),
  created_by text not null default session_user,
  constraint readers_pkey primary key (reader),
  constraint readers_cohorts_named check (
    cardinality(cohorts) > 0 and array_position(cohorts, null) is null and not '(all)' = any (cohorts)
  )
);
comment on table fleet.readers is
  'The logins that see only the devices of their cohorts. Change it with fleet.create_reader() and the functions like it; read it '
  'with fleet.reader_logins.';
comment on column fleet.readers.reader is 'The name of the login, a role of the cluster.';
comment on column fleet.readers.cohorts is 'fleet.devices.cohort of the devices that it sees. They need not exist yet.';
comment on column fleet.readers.created_at is 'When it was made.';
comment on column fleet.readers.created_by is 'The login that made it.';

-- Devices that send more requests than a server accepts.
create table if not exists fleet.device_slowdowns (
  device_id bigint not null,
  hour timestamptz not null,
  times bigint not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  constraint device_slowdowns_pkey primary key (device_id, hour)
);
comment on table fleet.device_slowdowns is
  'Requests of devices that were refused because a device sent too many, by device and hour. Read it with fleet.slowed_devices.';
comment on column fleet.device_slowdowns.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_slowdowns.hour is 'The beginning of the hour, in UTC.';
comment on column fleet.device_slowdowns.times is 'How many requests.';
comment on column fleet.device_slowdowns.first_at is 'When the first of them was reported.';
comment on column fleet.device_slowdowns.last_at is 'When the last of them was reported.';
create index if not exists device_slowdowns_last_at_idx on fleet.device_slowdowns (last_at);
comment on index fleet.device_slowdowns_last_at_idx is 'For fleet.check() and for pruning by age.';

-- Functions, procedures, views


--! Included scaling/is_distributed.sql
create or replace function fleet.is_distributed() returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select to_regclass('fleet.online_ranges') is not null;
$$;

comment on function fleet.is_distributed() is
  'Whether this store is distributed with Citus, or is being distributed; true on each of its nodes. '
  'Example: select fleet.is_distributed();';
--! EndIncluded scaling/is_distributed.sql
--! Included access/may_reach.sql
create or replace function fleet.may_reach(p_cohort text) returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(nullif(current_setting('fleet.cohorts', true), '')::jsonb ? p_cohort, true);
$$;

comment on function fleet.may_reach(text) is
  'Whether devices of this cohort are known to the key or session that acts; see fleet.act(). Example: '
  'select fleet.may_reach(''lobby'');';
--! EndIncluded access/may_reach.sql
--! Included access/current_actor.sql
create or replace function fleet.current_actor(out actor text, out how text, out request_id text, out address text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    case when a.is_server then a.actor else session_user::text end,
    case
      when a.is_server then a.how
      -- Any login can take this name, so it counts only for the one whose jobs pg_cron runs.
      when current_setting('application_name') similar to '(pg_cron|nexmdm tick)%' and pg_has_role(session_user, 'fleet_owner', 'member') then 'job'
      when (select b.backend_type from pg_stat_get_activity(pg_backend_pid()) b) like 'pg_cron%' then 'job'
      else 'sql'
    end,
    case when a.is_server then nullif(current_setting('fleet.request_id', true), '') end,
    case when a.is_server then nullif(current_setting('fleet.address', true), '') else host(inet_client_addr()) end
  from (
    select s.actor, s.how,
      -- Any login can set these, so they count only in the server's sessions.
      s.actor is not null and s.how in ('key', 'session') and pg_has_role(session_user, 'fleet_server', 'member') as is_server
    from (select nullif(current_setting('fleet.actor', true), '') as actor, current_setting('fleet.how', true) as how) s
  ) a;
$$;

comment on function fleet.current_actor() is
  'Who acts now: whom the server named with fleet.act(), or else the login of Postgres. Example: select * from '
  'fleet.current_actor();';
--! EndIncluded access/current_actor.sql
--! Included access/is_scheduled_run.sql
create or replace function fleet.is_scheduled_run() returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select a.how = 'job' and pg_has_role(session_user, 'fleet_owner', 'member')
  from fleet.current_actor() a;
$$;

comment on function fleet.is_scheduled_run() is
  'Whether pg_cron runs a job of the store now. What these do every hour is in fleet.events, and not in fleet.audit_log.';
--! EndIncluded access/is_scheduled_run.sql
--! Included access/audit.sql
create or replace function fleet.audit(
  p_action text,
  p_target text default null,
  p_before jsonb default null,
  p_after jsonb default null
) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.audit_log (actor, how, action, target, before, after, request_id, address)
  select a.actor, a.how, p_action, p_target, p_before, p_after, a.request_id, a.address
  from fleet.current_actor() a;
$$;

comment on function fleet.audit(text, text, jsonb, jsonb) is
  'Adds a row to fleet.audit_log, in the transaction of the deed. Example: '
  'perform fleet.audit(''device.revoked'', ''device:42'');';
--! EndIncluded access/audit.sql
--! Included access/seen_cohorts.sql
-- Of the login, not of the current role: SET ROLE changes nothing, and neither does a function with the owner's rights.
create or replace function fleet.seen_cohorts() returns text[]
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A superuser counts as a member of every role. Since PostgreSQL 16 a role that made fleet_cohort_reader is a member of it, too,
  -- but may not use its rights unless it gave them to itself; the setup makes it a member of fleet_owner.
  if pg_has_role(session_user, 'fleet_owner', 'member')
    or not pg_has_role(session_user, 'fleet_cohort_reader', 'usage')
    and not pg_has_role(
      session_user, 'fleet_cohort_reader',
      case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end
    ) then
    return null;
  end if;
  return coalesce((select c.cohorts from fleet.readers c where c.reader = session_user), '{}');
end
$$;

comment on function fleet.seen_cohorts() is
  'The cohorts that this login may see: null is all. For a login with the rights of fleet_cohort_reader they are those in '
  'fleet.readers, and none if it has no row there. The policies of the tables ask it. Example: select fleet.seen_cohorts();';
--! EndIncluded access/seen_cohorts.sql
--! Included access/find_api_key.sql
create or replace function fleet.find_api_key(p_hash bytea)
returns table (key_id bigint, name text, scopes text[], cohorts text[])
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.key_id, c.key_name, c.scopes, c.cohorts
  from fleet.api_credentials c
  where (c.token_hash = p_hash or c.previous_hash = p_hash and c.previous_until > now())
    and c.revoked_at is null
    and (c.expires_at is null or c.expires_at > now());
$$;

comment on function fleet.find_api_key(bytea) is
  'The API key with this SHA-256, if it is valid now. Example: select * from fleet.find_api_key(fleet.hash_token(''nxk_…''));';
--! EndIncluded access/find_api_key.sql
--! Included access/grant_heartbeat_columns.sql
-- Column by column, because pg_partman gives every new partition the rights on the whole table, and a partition that can be read
-- directly has no policy.
create or replace function fleet.grant_heartbeat_columns() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_columns text;
begin
  -- A grant writes the row of the column in the catalog, which the guard takes for a change of the column. So only what is missing
  -- is granted, and no column that the archive cannot store, which the guard would refuse.
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
  into v_columns
  from pg_attribute a
  where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    and fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is not null
    and not has_column_privilege('fleet_cohort_reader', a.attrelid, a.attnum, 'select');
  if v_columns is not null then
    execute format('grant select (%s) on fleet.device_heartbeats to fleet_cohort_reader', v_columns);
  end if;
end
$$;

comment on function fleet.grant_heartbeat_columns() is
  'Lets the logins of fleet.create_reader() read each column of fleet.device_heartbeats, but no partition directly. Called by '
  'grants.sql and, when columns were added, by fleet.note_columns().';
--! EndIncluded access/grant_heartbeat_columns.sql
--! Included devices/audit_devices.sql
-- With an UPDATE by hand, somebody may move thousands of devices at once.
create or replace function fleet.audit_devices() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 100;
  v_ids bigint[];
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  v_ids := array(
    select n.device_id
    from changed n
    join was o using (device_id)
    where (n.alias, n.cohort, n.heartbeat_interval, n.revoked_at)
      is distinct from (o.alias, o.cohort, o.heartbeat_interval, o.revoked_at)
  );
  if cardinality(v_ids) > c_most then
    perform fleet.audit(
      'devices.changed', 'devices:' || cardinality(v_ids),
      jsonb_build_object('cohorts', (array(select distinct o.cohort from was o order by 1))[1:c_most]),
      jsonb_build_object('cohorts', (array(select distinct n.cohort from changed n order by 1))[1:c_most])
    );
    return null;
  end if;
  perform fleet.audit(
    'device.changed', 'device:' || d.device_id,
    (select jsonb_object_agg(w.key, w.value) from jsonb_each(d.was) w where w.value <> d.is_now -> w.key),
    (select jsonb_object_agg(w.key, w.value) from jsonb_each(d.is_now) w where w.value <> d.was -> w.key)
  )
  from (
    select n.device_id, to_jsonb(o) - '{token_hash,changed_at}'::text[] as was,
      to_jsonb(n) - '{token_hash,changed_at}'::text[] as is_now
    from changed n
    join was o using (device_id)
    where n.device_id = any (v_ids)
    order by n.device_id
  ) d;
  return null;
end
$$;

comment on function fleet.audit_devices() is
  'Trigger on fleet.devices: records an UPDATE by hand in fleet.audit_log, with a row for each device, or one row for more than '
  '100. The functions for devices record what they do themselves.';
--! EndIncluded devices/audit_devices.sql
--! Included archive/compare_with_archive.sql
-- Call it before you lock the partition's row: comparing a large day takes seconds, and the archiver has to be able to renew its
-- lease in that row.
create or replace function fleet.compare_with_archive(p_partition text)
returns table (table_oid oid, row_count bigint, in_table text, in_archive text, differs boolean)
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
    select c.row_count, format('row hash %s', c.rows_hash), format('row hash %s', v_partition.rows_hash)
    into row_count, in_table, in_archive
    from fleet.count_rows(table_oid) c;
    differs := (row_count, in_table) is distinct from (v_partition.row_count, in_archive);
    -- On a machine with another byte order the same rows hash differently. If Postgres knows their content checksum, that decides.
    if not differs or v_partition.content_checksum is null then
      return next;
      return;
    end if;
  end if;
  -- A partition that was proven to be empty has no archive, and any version will do.
  select c.row_count, format('content checksum %s', c.content_checksum),
    format('content checksum %s', coalesce(v_partition.content_checksum, 0))
  into row_count, in_table, in_archive
  from fleet.content_checksum(table_oid, v_partition.columns, v_partition.checksum_version) c;
  differs := (row_count, in_table) is distinct from (coalesce(v_partition.row_count, 0), in_archive);
  return next;
end
$$;

comment on function fleet.compare_with_archive(text) is
  'Compares the rows of a retired table with what was recorded when they were archived, and blocks writers to the table until '
  'the end of the transaction. Returns no row if there is no table.';
--! EndIncluded archive/compare_with_archive.sql
--! Included archive/count_retired.sql
-- A drop relies on this count, so it is made with the owner's rights. What the archiver says that it copied is compared with it.
create or replace function fleet.count_retired(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_rows_sha256 text,
  p_columns jsonb default null,
  out row_count bigint,
  out rows_hash numeric,
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
begin
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is not null then
    -- Counting a large day takes seconds, so it happens before the row is locked, and the archiver can renew its lease meanwhile.
    select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) into v_columns
    from fleet.archive_columns(v_table) c;
    select c.row_count, c.rows_hash, c.min_ts, c.max_ts into row_count, rows_hash, min_ts, max_ts
    from fleet.count_rows(v_table) c;
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
  if p_rows_sha256 is null or p_rows_sha256 !~ '^[0-9a-f]{64}$' then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a SHA-256 in hex; nothing is archived', coalesce(p_rows_sha256, 'null')),
      hint = 'The archiver has to be of the version of this database.';
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
    'row_count', count_retired.row_count, 'rows_hash', count_retired.rows_hash::text, 'min_ts', count_retired.min_ts,
    'max_ts', count_retired.max_ts, 'rows_sha256', p_rows_sha256, 'columns', v_columns
  )
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.count_retired(text, text, bigint, text, jsonb) is
  'Archiving: counts and hashes the rows of a retired table, with the owner''s rights, and compares the count and the columns '
  'with what the archiver says that it copied. Records that together with the archiver''s SHA-256 of the rows. The proof and the '
  'drop are compared with this.';
--! EndIncluded archive/count_retired.sql
--! Included ingest/heartbeat_bucket.sql
-- No SET clause, and a body that is parsed at creation, so that it is inlined and the index of the bucket is used. The index of
-- the template has the same expression written out, because a new definition would not change the index.
create or replace function fleet.heartbeat_bucket(p_ts timestamptz) returns timestamptz
language sql
immutable
parallel safe
return date_bin('10 seconds', p_ts, timestamptz '2000-01-01 00:00:00+00');

comment on function fleet.heartbeat_bucket(timestamptz) is
  'The start of the 10 seconds of which only the first heartbeat of a device is stored. '
  'Example: select fleet.heartbeat_bucket(now());';
--! EndIncluded ingest/heartbeat_bucket.sql
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
    select (r.beat).device_id, fleet.heartbeat_bucket((r.beat).ts) as bucket
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
      where g.device_id = h.device_id and g.bucket = fleet.heartbeat_bucket(h.ts)
    );
$$;

comment on function fleet.missing_heartbeats(fleet.imports, timestamptz, timestamptz) is
  'The heartbeats of a time range that the store has received since the import of a table began and for whose device and '
  '10-second bucket the table has no row.';
--! EndIncluded import/missing_heartbeats.sql
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
            fleet.heartbeat_bucket(b.ts) as bucket
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
    p_detail => format('%s, by %s', a.source, (fleet.current_actor()).actor)
  );
  perform fleet.audit('import.confirmed', 'import:' || a.source);
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
          select b.device_id, fleet.heartbeat_bucket(b.ts) as bucket, b.ts, b.received_at,
            %1$s as checksum
          from (select (g.beat).* from given g) b
        ),
        store as materialized (
          select b.device_id, fleet.heartbeat_bucket(b.ts) as bucket, b.ts, b.received_at,
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
  -- Tried twice at most: since the days were counted, a row may have arrived for a day that has no partition or is settled.
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
        order by (g.beat).device_id, fleet.heartbeat_bucket((g.beat).ts), g.tid
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
      perform fleet.add_partitions(r.day, r.day)
      from (
        select distinct (r.beat).ts::date as day from fleet.read_source(a, a.next_block, v_last) r where r.reason is null
      ) r
      where not exists (select from fleet.attached_partitions() p where p.range_start <= r.day and p.range_end > r.day);
      perform fleet.unsettle_table(p.partition_name)
      from fleet.hb_partitions p
      where p.settled_at is not null and p.state in ('active', 'restored')
        and exists (
          select from fleet.read_source(a, a.next_block, v_last) r
          where r.reason is null and (r.beat).ts >= p.range_start and (r.beat).ts < p.range_end
        );
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
--! Included import/create_forward_function.sql
-- Each table has its own trigger function: it is compiled once, and dropping it also drops the trigger, which otherwise only
-- the owner of the table may do. It names every column of fleet.device_heartbeats, so it is made again when they change.
create or replace function fleet.create_forward_function(a fleet.imports) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
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
end
$$;

comment on function fleet.create_forward_function(fleet.imports) is
  'Creates the function of the trigger that forwards new rows of a table that is being imported, or creates it again for the '
  'columns that fleet.device_heartbeats has now.';
--! EndIncluded import/create_forward_function.sql
--! Included import/start_forwarding.sql
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
  perform fleet.create_forward_function(a);
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
  perform fleet.grant_heartbeat_columns();

  perform fleet.create_forward_function(i)
  from fleet.imports i
  where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;

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
--! Included archive/require_forms.sql
create or replace function fleet.require_forms(p_partition text, p_columns jsonb) returns void
language plpgsql
stable
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
--! Included ingest/add_field.sql
create or replace function fleet.add_field(p_name text, p_type regtype, p_comment text) returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  c_tables constant regclass[] := array[
    'fleet.device_heartbeats', 'fleet.device_heartbeats_template', 'fleet.device_last_status'
  ];
  v_table regclass;
  v_column record;
begin
  foreach v_table in array c_tables loop
    select format_type(a.atttypid, a.atttypmod) as type, a.attnotnull or a.attgenerated <> '' or a.attidentity <> '' as is_bound
    into v_column
    from pg_attribute a
    where a.attrelid = v_table and a.attname = p_name and not a.attisdropped;
    if v_column.type <> format_type(p_type, null) then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s has a column %s of type %s already, and the field needs one of type %s', v_table, p_name, v_column.type,
          format_type(p_type, null)
        ),
        hint = format(
          'Rename it and migrate again. As fleet_owner: alter table %s rename column %I to %I;', v_table, p_name, 'own_' || p_name
        );
    elsif v_column.is_bound then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s has a column %s already that is NOT NULL or generated, and a heartbeat need not have the field', v_table, p_name
        ),
        hint = format(
          'Drop NOT NULL, or rename the column, and migrate again. As fleet_owner: alter table %s alter column %I drop not null;',
          v_table, p_name
        );
    end if;
  end loop;

  -- A new store begins with the column, so it is not recorded as a change: fleet.note_columns() records all columns again below.
  delete from fleet.heartbeat_columns
  where not exists (select 1 from fleet.device_heartbeats)
    and not exists (select 1 from fleet.hb_partitions p where p.state <> 'active')
    and not exists (select 1 from fleet.column_changes);

  -- While this waits for a lock on one partition, heartbeats wait behind it. So it gives up soon, lets them through and tries
  -- again.
  for v_try in 1..20 loop
    begin
      foreach v_table in array c_tables loop
        execute format('alter table %s add column if not exists %I %s', v_table, p_name, format_type(p_type, null));
      end loop;
      -- A partition that exists gets the column, but not its comment.
      foreach v_table in array c_tables || array(select a.relid::regclass from fleet.attached_partitions() a) loop
        execute format('comment on column %s.%I is %L', v_table, p_name, p_comment);
      end loop;
      exit;
    exception when lock_not_available then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('fleet.device_heartbeats is in use: 20 attempts to add the column %s failed', p_name),
          hint = 'Nothing has changed. Wait until VACUUM, pg_dump or a long query has ended, and migrate again. Who it is: '
            'select pid, state, query from pg_stat_activity where query ilike ''%device_heartbeats%'';';
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;
  perform fleet.note_columns();
end
$$;

comment on function fleet.add_field(text, regtype, text) is
  'Adds the column of a new field to the heartbeats, to the template of their partitions and to last status, with its comment. '
  'Called by the migration of the field; may be called again. See docs/add-a-field.md. '
  'Example: select fleet.add_field(''storage_free_mb'', ''integer'', ''Free storage in MB.'');';
--! EndIncluded ingest/add_field.sql

select fleet.add_field('extra', 'jsonb', 'The agent''s own values: a JSON object of at most 2 KiB.');
select fleet.add_field(
  'next_in_s', 'integer', 'In how many seconds the device announced its next heartbeat: 1 to 604800. It is not late before.'
);
select fleet.add_field(
  'stopping', 'text', 'Why the device is about to stop, as it said: shutdown, reboot, update or app (only its agent stops).'
);

--! Included ingest/stored_ip.sql
create or replace function fleet.stored_ip(p_ip inet, p_store_ip text) returns inet
language sql
immutable
parallel safe
return case p_store_ip
  when 'full' then p_ip
  when 'prefix' then network(set_masklen(p_ip, case family(p_ip) when 4 then 24 else 48 end))::inet
end;

comment on function fleet.stored_ip(inet, text) is
  'What is stored of an address by settings.store_ip: all of it (full), its network (prefix) or nothing (none). '
  'Example: select fleet.stored_ip(''192.0.2.7'', ''prefix'');';
--! EndIncluded ingest/stored_ip.sql
--! Included ingest/reported_values.sql
create or replace function fleet.reported_values(p_payload jsonb) returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p_payload || jsonb_build_object('ip', fleet.stored_ip((p_payload ->> 'ip')::inet, s.store_ip))
  from fleet.settings s;
$$;

comment on function fleet.reported_values(jsonb) is
  'A heartbeat as it arrived, with as much of its address as settings.store_ip allows. '
  'Example: select fleet.reported_values(payload) from fleet.heartbeat_quarantine limit 1;';
--! EndIncluded ingest/reported_values.sql
--! Included jobs/lock_holders.sql
create or replace function fleet.lock_holders(p_lock text) returns setof integer
language sql
stable
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
--! Included jobs/postgres_started_at.sql
create or replace function fleet.postgres_started_at() returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case when pg_postmaster_start_time() <= clock_timestamp() then pg_postmaster_start_time() end;
$$;

comment on function fleet.postgres_started_at() is
  'When Postgres started; null if its clock ran ahead then. No job is late because it did not run before. '
  'Example: select now() - fleet.postgres_started_at();';
--! EndIncluded jobs/postgres_started_at.sql
--! Included status/allowed_lag.sql
create or replace function fleet.allowed_lag(p_offline_after interval, p_max_late interval) returns interval
language sql
immutable
parallel safe
return greatest(interval '1 minute', least(p_offline_after, p_max_late));

comment on function fleet.allowed_lag(interval, interval) is
  'How much later than its ts the newest heartbeat of a device may arrive. If it arrives later than that, the clock of the device '
  'is wrong. '
  'Example: select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s;';
--! EndIncluded status/allowed_lag.sql
--! Included status/is_ahead.sql
create or replace function fleet.is_ahead(p_ts timestamptz, p_now timestamptz default now()) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p_ts > p_now + s.max_future from fleet.settings s;
$$;

comment on function fleet.is_ahead(timestamptz, timestamptz) is
  'Whether a time is further in the future than settings.max_future allows. '
  'Example: select fleet.is_ahead(now() + interval ''1 hour'');';
--! EndIncluded status/is_ahead.sql
--! Included status/record_arrivals.sql
create or replace function fleet.record_arrivals(
  p_device_ids bigint[],
  p_received_ats timestamptz[],
  p_tss timestamptz[] default '{}'
) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_bound timestamptz;
  v_lag interval;
  v_rows bigint;
  v_changed bigint[];
begin
  select now() + s.max_future, fleet.allowed_lag(s.offline_after, s.max_late) into v_bound, v_lag from fleet.settings s;
  with written as (
  update fleet.device_last_status ls
  set last_ts = case when ls.last_ts > v_bound then coalesce(b.ts, ls.last_ts) else greatest(ls.last_ts, b.ts) end,
    last_received_at = case
      when ls.last_received_at > v_bound then b.received_at
      else greatest(ls.last_received_at, b.received_at)
    end,
    -- A duplicate may be a retry of a heartbeat that was on time.
    status = case
      when b.ts is not null and b.received_at - greatest(ls.last_ts, b.ts) > v_lag
        and b.received_at - greatest(ls.last_ts, b.ts) > 2 * coalesce(
          (select d.heartbeat_interval from fleet.devices d where d.device_id = ls.device_id), interval '0'
        ) then 'clock_skewed'
      else ls.status
    end,
    is_silent = ls.is_silent and b.received_at < now() - interval '2 minutes',
    gap_from = case
      when b.received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
        then ls.last_received_at
    end,
    gap_next_in_s = ls.next_in_s,
    gap_stopping = ls.stopping,
    gap_battery_pct = ls.battery_pct,
    gap_signal_dbm = ls.signal_dbm
  from unnest(p_device_ids, p_received_ats, p_tss) as b (device_id, received_at, ts)
  where ls.device_id = b.device_id
    and (
      coalesce(ls.last_ts, '-infinity') < b.ts or ls.last_ts > v_bound and b.ts is not null
      or ls.last_received_at is null or ls.last_received_at < b.received_at or ls.last_received_at > v_bound
    )
  returning case
    when ls.noted_status <> case ls.status when 'ok' then 'online' else ls.status end or ls.gap_from is not null
      then ls.device_id
  end as changed_id
  )
  select count(*), array_agg(w.changed_id) filter (where w.changed_id is not null) into v_rows, v_changed from written w;
  if v_changed is not null then
    perform fleet.note_transitions(v_changed);
  end if;
  return v_rows;
end
$$;

comment on function fleet.record_arrivals(bigint[], timestamptz[], timestamptz[]) is
  'Records when devices were heard from, without changing the values that they reported: for heartbeats that are older than the '
  'newest one, and for duplicates, which are passed without a ts. Devices that send only older heartbeats for '
  'settings.offline_after and for two of their intervals become clock_skewed. '
  'Returns how many rows changed.';
--! EndIncluded status/record_arrivals.sql
--! Included status/upsert_last_status.sql
create or replace function fleet.upsert_last_status(p_beats fleet.device_heartbeats[], p_are_stored boolean) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows bigint;
  v_changed bigint[];
begin
  with newest as (
    select b.*, case when p_are_stored then b.ts end as stored_ts
    from unnest(p_beats) b
  )
--! Included status/upsert_last_status.inc.sql
, written as (
    insert into fleet.device_last_status as ls (
      device_id, last_ts, last_received_at, status, is_silent, noted_status,
      battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra, next_in_s, stopping
    )
    select n.device_id, n.stored_ts, n.received_at,
      case
        -- The first comparison spares most batches the read of the settings.
        when n.ts < n.received_at - interval '1 minute'
          and n.received_at - n.ts > (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s)
          or n.stored_ts is null and fleet.is_ahead(n.ts, n.received_at) then 'clock_skewed'
        when n.unity_running is false then 'unity_down'
        else 'ok'
      end,
      -- The value rarely changes, so the update stays HOT.
      n.received_at < now() - interval '2 minutes',
      'new',
      n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip, n.extra, n.next_in_s, n.stopping
    from newest n
    order by n.device_id  -- otherwise concurrent batches of the same devices deadlock
    on conflict (device_id) do update
      set last_ts = coalesce(excluded.last_ts, ls.last_ts),
        last_received_at = case
          when ls.last_received_at > excluded.last_received_at and not fleet.is_ahead(ls.last_received_at)
            then ls.last_received_at
          else excluded.last_received_at
        end,
        status = excluded.status,
        is_silent = excluded.is_silent,
        gap_from = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.last_received_at
        end,
        gap_next_in_s = ls.next_in_s,
        gap_stopping = ls.stopping,
        gap_battery_pct = ls.battery_pct,
        gap_signal_dbm = ls.signal_dbm,
        battery_pct = excluded.battery_pct,
        network_type = excluded.network_type,
        unity_running = excluded.unity_running,
        signal_dbm = excluded.signal_dbm,
        agent_version = excluded.agent_version,
        next_in_s = excluded.next_in_s,
        stopping = excluded.stopping,
        ip = excluded.ip,
        extra = excluded.extra
      -- A late arrival must not rewind a device. What lies in the future was written while the clock of Postgres ran ahead.
      -- fleet.is_ahead() is called only when the other comparisons are false.
      where case
        when excluded.last_ts is null then ls.last_received_at is null or ls.last_received_at < excluded.last_received_at
          or fleet.is_ahead(ls.last_received_at)
        else ls.last_ts is null or ls.last_ts < excluded.last_ts
          or fleet.is_ahead(ls.last_ts)
          or ls.last_ts = excluded.last_ts and fleet.is_ahead(ls.last_received_at)
      end
    -- What may be a transition.
    returning case
      when ls.noted_status <> case ls.status when 'ok' then 'online' else ls.status end or ls.gap_from is not null
        then ls.device_id
    end as changed_id
  )
  select count(*), array_agg(w.changed_id) filter (where w.changed_id is not null) into v_rows, v_changed from written w;
  if v_changed is not null then
    perform fleet.note_transitions(v_changed);
  end if;
--! EndIncluded status/upsert_last_status.inc.sql
  return v_rows;
end
$$;

comment on function fleet.upsert_last_status(fleet.device_heartbeats[], boolean) is
  'Writes one heartbeat of each device to last status, as fleet.record_last_status() does for a batch: the newest of those that '
  'were stored, or of those that were refused (p_are_stored is false; last_ts then stays). Returns how many rows changed.';
--! EndIncluded status/upsert_last_status.sql
--! Included status/record_last_status.sql
-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The clock, not now(): heartbeats that fleet.roll_up() does not wait for have to be recorded as late.
  v_today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
  v_rows bigint;
  v_changed bigint[];
begin
  with late as (
    insert into fleet.late_arrivals (device_id, day)
    select distinct n.device_id, (n.ts at time zone 'UTC')::date
    from new_rows n
    where n.ts < v_today
  ),
  newest as (
    select distinct on (r.device_id) r.*, r.ts as stored_ts
    from new_rows r
    order by r.device_id, r.ts desc
  )
--! Included status/upsert_last_status.inc.sql
, written as (
    insert into fleet.device_last_status as ls (
      device_id, last_ts, last_received_at, status, is_silent, noted_status,
      battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra, next_in_s, stopping
    )
    select n.device_id, n.stored_ts, n.received_at,
      case
        -- The first comparison spares most batches the read of the settings.
        when n.ts < n.received_at - interval '1 minute'
          and n.received_at - n.ts > (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s)
          or n.stored_ts is null and fleet.is_ahead(n.ts, n.received_at) then 'clock_skewed'
        when n.unity_running is false then 'unity_down'
        else 'ok'
      end,
      -- The value rarely changes, so the update stays HOT.
      n.received_at < now() - interval '2 minutes',
      'new',
      n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip, n.extra, n.next_in_s, n.stopping
    from newest n
    order by n.device_id  -- otherwise concurrent batches of the same devices deadlock
    on conflict (device_id) do update
      set last_ts = coalesce(excluded.last_ts, ls.last_ts),
        last_received_at = case
          when ls.last_received_at > excluded.last_received_at and not fleet.is_ahead(ls.last_received_at)
            then ls.last_received_at
          else excluded.last_received_at
        end,
        status = excluded.status,
        is_silent = excluded.is_silent,
        gap_from = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.last_received_at
        end,
        gap_next_in_s = ls.next_in_s,
        gap_stopping = ls.stopping,
        gap_battery_pct = ls.battery_pct,
        gap_signal_dbm = ls.signal_dbm,
        battery_pct = excluded.battery_pct,
        network_type = excluded.network_type,
        unity_running = excluded.unity_running,
        signal_dbm = excluded.signal_dbm,
        agent_version = excluded.agent_version,
        next_in_s = excluded.next_in_s,
        stopping = excluded.stopping,
        ip = excluded.ip,
        extra = excluded.extra
      -- A late arrival must not rewind a device. What lies in the future was written while the clock of Postgres ran ahead.
      -- fleet.is_ahead() is called only when the other comparisons are false.
      where case
        when excluded.last_ts is null then ls.last_received_at is null or ls.last_received_at < excluded.last_received_at
          or fleet.is_ahead(ls.last_received_at)
        else ls.last_ts is null or ls.last_ts < excluded.last_ts
          or fleet.is_ahead(ls.last_ts)
          or ls.last_ts = excluded.last_ts and fleet.is_ahead(ls.last_received_at)
      end
    -- What may be a transition.
    returning case
      when ls.noted_status <> case ls.status when 'ok' then 'online' else ls.status end or ls.gap_from is not null
        then ls.device_id
    end as changed_id
  )
  select count(*), array_agg(w.changed_id) filter (where w.changed_id is not null) into v_rows, v_changed from written w;
  if v_changed is not null then
    perform fleet.note_transitions(v_changed);
  end if;
--! EndIncluded status/upsert_last_status.inc.sql
  -- These rows are locked already: the upsert locks those too that it leaves as they are.
  if v_rows < (select count(*) from new_rows) then
    perform fleet.record_arrivals(array_agg(n.device_id), array_agg(n.received_at), array_agg(n.ts))
    from (select r.device_id, max(r.received_at) as received_at, max(r.ts) as ts from new_rows r group by r.device_id) n;
  end if;
  return null;
end
$$;

comment on function fleet.record_last_status() is
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device, records there when '
  'a device was heard from whose heartbeats are older, and records heartbeats of past days in fleet.late_arrivals.';
--! EndIncluded status/record_last_status.sql
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
  c_chunk constant integer := 10000;
  v_since timestamptz := now() - p_window;
  v_bound timestamptz := now() + (select s.max_future from fleet.settings s);
  v_behind bigint[];
  v_chunk bigint[];
  v_beats fleet.device_heartbeats[];
  v_rows bigint;
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
    select d.device_id, h.ts, ls.last_ts,
      coalesce(ls.last_ts > v_bound or ls.last_received_at > v_bound, false) as is_ahead
    from fleet.devices d
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    left join lateral (
      select b.ts
      from fleet.device_heartbeats b
      where b.device_id = d.device_id and b.ts >= v_since and b.ts <= v_bound
      order by b.ts desc
      limit 1
    ) h on true
  ),
  behind as (
    select n.device_id
    from newest n
    where n.is_ahead or n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id <= coalesce(v_after, 0), n.device_id
    limit p_max_rows
  )
  select (select count(*) from newest), array_agg(b.device_id order by b.device_id),
    (
      select b.device_id from behind b order by b.device_id <= coalesce(v_after, 0) desc, b.device_id desc limit 1
    )
  into checked, v_behind, v_last
  from behind b;

  updated := 0;
  for v_first in 1..coalesce(cardinality(v_behind), 0) by c_chunk loop
    v_chunk := v_behind[v_first : v_first + c_chunk - 1];
    -- In the order in which ingest locks them. What is read afterwards includes what arrived until then.
    perform from fleet.device_last_status ls where ls.device_id = any (v_chunk) order by ls.device_id for update;
    select array_agg(
      case
        when h.received_at > v_bound then jsonb_populate_record(h.beat, jsonb_build_object('received_at', h.ts))
        else h.beat
      end
    )
    into v_beats
    from unnest(v_chunk) c (device_id)
    left join fleet.device_last_status ls on ls.device_id = c.device_id
    cross join lateral (
      select b as beat, b.ts, b.received_at
      from fleet.device_heartbeats b
      where b.device_id = c.device_id and b.ts <= v_bound
        and (b.ts >= v_since or ls.last_ts > v_bound or ls.last_received_at > v_bound)
      order by b.ts desc
      limit 1
    ) h;
    updated := updated + fleet.upsert_last_status(v_beats, true) + (
      -- Where the upsert left the values alone, the times may still be wrong.
      select fleet.record_arrivals(array_agg(b.device_id), array_agg(b.received_at), array_agg(b.ts)) from unnest(v_beats) b
    );
    -- Everything that is known of these devices was written while the clock of Postgres ran ahead.
    update fleet.device_last_status ls
    set last_ts = null, last_received_at = q.received_at, status = case when q.received_at is not null then ls.status end
    from unnest(v_chunk) u (device_id)
    cross join lateral (
      select max(k.received_at) as received_at
      from fleet.heartbeat_quarantine k
      where k.device_id = u.device_id and k.received_at <= v_bound
    ) q
    where ls.device_id = u.device_id and (ls.last_ts > v_bound or ls.last_received_at > v_bound);
    get diagnostics v_rows = row_count;
    updated := updated + v_rows;
    -- This may take minutes. fleet.mark_silent() removes the marks that are not needed.
    update fleet.device_last_status ls
    set is_silent = true
    where ls.device_id = any (v_chunk) and not ls.is_silent;
  end loop;
  insert into fleet.cursors as c (cursor_name, position)
  values ('reconcile', case when updated < p_max_rows then 0 else v_last end)
  on conflict (cursor_name) do update
    set position = excluded.position
    where c.position <> excluded.position;
end
$$;

comment on function fleet.heal_last_status(interval, integer) is
  'Moves last status forward to the newest stored heartbeat within a window, and back where it is in the future because the '
  'database''s clock ran ahead, for at most p_max_rows devices. Used by fleet.reconcile() and fleet.backfill_last_status().';
--! EndIncluded status/heal_last_status.sql
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

  return v_results;
end
$$;

comment on function fleet.quarantine(json, timestamptz, bigint[], timestamptz[], text[], text[]) is
  'Quarantines the refused items of a batch. Returns the results, with those of the refused items filled in: quarantined, or '
  'rejected if the quarantine of the device is full. Called by fleet.ingest_batch().';
--! EndIncluded ingest/quarantine.sql
--! Included ingest/record_others.sql
create or replace function fleet.record_others(
  p_batch json,
  p_received_at timestamptz,
  p_device_ids bigint[],
  p_tss timestamptz[],
  p_results text[]
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_lag interval := (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s);
  v_refused bigint[];
  v_heard bigint[];
begin
  select array_agg(j.device_id) filter (where j.says_more), array_agg(j.device_id) filter (where not j.says_more)
  into v_refused, v_heard
  from (
    select u.device_id,
      -- What is refused because it is old says nothing new of a device that sent a heartbeat on time a moment ago.
      u.is_refused and (l.last_ts is null or l.last_ts < greatest(u.ts, p_received_at - v_lag)) as says_more
    from (
      select k.device_id, bool_and(k.result in ('quarantined', 'rejected')) as is_refused, max(k.ts) as ts
      from unnest(p_device_ids, p_tss, p_results) as k (device_id, ts, result)
      group by k.device_id
    ) u
    join (
      -- Does not wait: a row that another batch is writing is left to that batch. So batches do not deadlock.
      select l.device_id, l.last_ts
      from fleet.device_last_status l
      where l.device_id = any (p_device_ids)
        -- Most rows were written by the trigger a moment ago.
        and (l.last_received_at is null or l.last_received_at <> p_received_at)
      for update skip locked
    ) l using (device_id)
  ) j;
  if v_heard is not null then
    perform fleet.record_arrivals(v_heard, array_fill(p_received_at, array[cardinality(v_heard)]));
  end if;
  -- What a device announces counts, even if another heartbeat has taken its bucket: it may be the last one before it stops.
  if p_batch::text ~ '"(next_in_s|stopping)"' then
    with announced as (
      select distinct on (u.device_id) u.device_id, u.ts, r.next_in_s, r.stopping
      from unnest(p_device_ids, p_tss, p_results) with ordinality as u (device_id, ts, result, item)
      join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
      cross join lateral jsonb_populate_record(null::fleet.device_last_status, fleet.reported_values(e.value::jsonb)) r
      where u.result = 'duplicate' and u.device_id is not null and (r.next_in_s is not null or r.stopping is not null)
      order by u.device_id, u.ts desc
    ),
    free as (
      select l.device_id
      from fleet.device_last_status l
      join announced a using (device_id)
      where l.last_ts <= a.ts
      for update of l skip locked
    )
    update fleet.device_last_status ls
    set next_in_s = a.next_in_s, stopping = a.stopping
    from announced a
    join free f using (device_id)
    where ls.device_id = a.device_id;
  end if;
  if v_refused is not null then
    perform fleet.upsert_last_status(array_agg(b.beat), false)
    from (
      select distinct on (u.device_id)
        jsonb_populate_record(
          null::fleet.device_heartbeats,
          fleet.reported_values(e.value::jsonb)
          || jsonb_build_object('device_id', u.device_id, 'ts', u.ts, 'received_at', p_received_at)
        ) as beat
      from unnest(p_device_ids, p_tss) with ordinality as u (device_id, ts, item)
      join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
      where u.device_id = any (v_refused)
      order by u.device_id, u.ts desc
    ) b;
  end if;
end
$$;

comment on function fleet.record_others(json, timestamptz, bigint[], timestamptz[], text[]) is
  'Records in last status what the trigger on the heartbeats does not: that devices were heard from whose heartbeats were '
  'duplicates or refused. If all that a device sent was refused, last status takes the values of the newest of it, unless it has a '
  'newer heartbeat that was on time. Also takes next_in_s and stopping of newer duplicates. Called by fleet.ingest_batch().';
--! EndIncluded ingest/record_others.sql
--! Included ingest/ingest_batch.sql
create or replace function fleet.ingest_batch(
  p_batch json,
  p_received_at timestamptz default now(),
  p_token_hashes bytea[] default null,
  p_items integer[] default null,
  out results text[],
  out reasons text[],
  out tss timestamptz[],
  out device_ids bigint[],
  out next_intervals integer[]
) returns record
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_generic_plan  -- measured: planning each batch again took up to a quarter of Postgres's CPU
set jit = off  -- measured: JIT compilation cut the rate from 140 to 4 batches a second
set enable_seqscan = off  -- a plan that was made while fleet.devices was empty must use its indexes when a million are enrolled
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_owners bigint[];  -- for each item: the device of its token, 0 for a gateway, -1 if the token is unknown or revoked
  v_intervals integer[];
  v_heard bigint[];
  v_stored_ids bigint[];
  v_stored_tss timestamptz[];
begin
  if p_received_at > now() then
    perform fleet.not_in_future(p_received_at);
  end if;
  select * into strict v_settings from fleet.settings;
  if p_token_hashes is not null then
    select array_agg(i.owner), array_agg(i.next_interval_s)
    into v_owners, v_intervals
    from (
      -- In the select list, because as a join generate_series() took a third of the time of the whole query.
      select r.owner, r.next_interval_s, generate_series(1, r.items)
      from (
        select t.items, coalesce(d.next_interval_s, 0) as next_interval_s,
          case
            when d.device_id is not null then d.device_id
            when exists (select from fleet.gateways g where g.token_hash = t.token_hash and g.revoked_at is null) then 0
            else -1
          end as owner
        from unnest(p_token_hashes, p_items) with ordinality as t (token_hash, items, nth)
        left join lateral (
          select e.device_id, e.next_interval_s
          from fleet.enrolled_devices e
          where e.token_hash = t.token_hash
          limit 1  -- so that each token is looked up by itself, whatever the planner believes about the table
        ) d on true
        order by t.nth
      ) r
    ) i;
  end if;
  for v_try in 1..3 loop
    begin
      with given as materialized (
        select i.ordinality as item, t.ts,
          case when t.owner > 0 then t.owner when t.owner = 0 or p_token_hashes is null then i.device_id end as device_id,
          -- Null if the item is refused because of its token or its device.
          case
            when t.owner > 0 then case when i.device_id is null or i.device_id = t.owner then v_intervals[i.ordinality] end
            when t.owner = 0 then (
              select e.next_interval_s from fleet.enrolled_devices e where e.device_id = i.device_id
            )
          end as next_interval_s,
          i.signal_dbm, i.battery_pct, i.unity_running, i.network_type, i.agent_version,
          i.next_in_s, i.stopping,
          fleet.stored_ip(i.ip, v_settings.store_ip) as ip, i.extra,
          case
            when t.ts < p_received_at - least(v_settings.max_late, v_settings.retention) then 'too_late'
            when t.ts > p_received_at + v_settings.max_future then 'in_future'
            -- Only if the insert found no partition for a row, or one that is settled, because max_late was raised a moment ago.
            -- Bounds are UTC midnights.
            when v_try > 1 and exists (
              select from fleet.hb_partitions p
              where p.range_start <= t.ts and p.range_end > t.ts and p.settled_at is not null
                and p.state in ('active', 'restored')
            ) then 'too_late'
            when v_try > 1 and not exists (
              select from fleet.hb_partitions p
              where p.range_start <= t.ts and p.range_end > t.ts
                and p.state in ('active', 'restored') and p.relid is not null
            ) then 'no_partition'
          end as reason
        from rows from (
          json_to_recordset(p_batch) as (
            device_id bigint, ts timestamptz,
            signal_dbm smallint, battery_pct smallint, unity_running boolean, network_type text, agent_version text,
            next_in_s integer, stopping text,
            ip inet, extra jsonb
          )
        ) with ordinality i
        cross join lateral (select coalesce(i.ts, p_received_at) as ts, v_owners[i.ordinality] as owner) t
      ),
      stored as (
        insert into fleet.device_heartbeats (
          ts, received_at, device_id,
          signal_dbm, battery_pct, unity_running, network_type, agent_version,
          next_in_s, stopping,
          ip, extra
        )
        select g.ts, p_received_at, g.device_id,
          g.signal_dbm, g.battery_pct, g.unity_running, g.network_type, g.agent_version,
          g.next_in_s, g.stopping,
          g.ip, g.extra
        from given g
        where g.reason is null and (g.next_interval_s is not null or p_token_hashes is null)
        -- The same order in every batch, so there is no deadlock. Of those in one bucket, the first item comes first.
        order by g.device_id, fleet.heartbeat_bucket(g.ts), g.item
        on conflict do nothing
        returning device_id, ts
      )
      select g.reasons, g.tss, g.device_ids, g.next_intervals, s.device_ids, s.tss
      into reasons, tss, device_ids, next_intervals, v_stored_ids, v_stored_tss
      from (
        select array_agg(o.reason) as reasons, array_agg(o.ts) as tss, array_agg(o.device_id) as device_ids,
          array_agg(o.next_interval_s) as next_intervals
        from (select i.reason, i.ts, i.device_id, i.next_interval_s from given i order by i.item) o
      ) g
      cross join (select array_agg(i.device_id) as device_ids, array_agg(i.ts) as tss from stored i) s;
      exit;
    exception when check_violation then
      -- A partition can be retired between the read of fleet.hb_partitions and the insert, too.
      if v_try = 3 then
        raise;
      end if;
      perform fleet.sync_partitions();
    end;
  end loop;

  if cardinality(v_stored_ids) = cardinality(tss) then
    reasons := null;
    return;
  end if;
  v_heard := device_ids;
  if p_token_hashes is not null then
    -- Of what is refused because of its token or its device, nothing is kept and nobody was heard from.
    select array_agg(case when u.next_interval_s is not null then u.device_id end order by u.item),
      array_agg(case when u.next_interval_s is not null then u.reason end order by u.item),
      array_agg(
        case when u.next_interval_s is null then case when u.owner >= 0 then 'unknown_device' else 'unauthorized' end end
        order by u.item
      )
    into v_heard, reasons, results
    from unnest(device_ids, reasons, next_intervals, v_owners) with ordinality
      as u (device_id, reason, next_interval_s, owner, item)
    where u.item <= cardinality(tss);
  end if;
  select array_agg(
    coalesce(
      g.result,
      case when g.reason is null then case when s.ts is null or g.nth > 1 then 'duplicate' else 'stored' end end
    )
    order by g.item
  )
  into results
  from (
    select u.*, row_number() over (partition by u.device_id, u.ts, u.reason is null order by u.item) as nth
    from unnest(v_heard, tss, reasons, results) with ordinality as u (device_id, ts, reason, result, item)
  ) g
  left join unnest(v_stored_ids, v_stored_tss) as s (device_id, ts) on s.device_id = g.device_id and s.ts = g.ts;

  -- After the heartbeats and last status, in every batch: all batches take locks in the same order, so they do not deadlock.
  if array_position(results, null) is not null then
    results := fleet.quarantine(p_batch, p_received_at, v_heard, tss, reasons, results);
    reasons := array(
      select case u.result when 'rejected' then 'quarantine_full' else u.reason end
      from unnest(results, reasons) with ordinality as u (result, reason, item)
      order by u.item
    );
  end if;
  perform fleet.record_others(p_batch, p_received_at, v_heard, tss, results);
end
$$;

comment on function fleet.ingest_batch(json, timestamptz, bytea[], integer[]) is
  'Stores a batch of heartbeats, as fleet.ingest() does, and answers with arrays in the order of the items. results and reasons '
  'are null if every heartbeat was stored, which is the usual case and costs nothing to say. The server also gives the SHA-256 of '
  'the token of each request, and how many of the items belong to it, in their order. Then each item is authenticated in the same '
  'statement: unauthorized (the token is unknown or revoked) or unknown_device (a gateway''s item whose device is not enrolled or '
  'is revoked; a device''s item that names another device); nothing is kept of such items. An item may leave out its device if its '
  'token is a device''s. next_intervals has the seconds to ask each device for. Without hashes the caller is trusted. '
  'Example: select * from fleet.ingest_batch(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded ingest/ingest_batch.sql
--! Included ingest/ingest.sql
-- The server calls fleet.ingest_batch(). This is for people, whose heartbeats are recorded as theirs.
create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch record;
begin
  select b.results, b.reasons, b.tss into v_batch from fleet.ingest_batch(p_batch, p_received_at) b;
  if pg_has_role(session_user, 'fleet_dba', 'member') and not pg_has_role(session_user, 'fleet_server', 'member') then
    perform fleet.audit('heartbeats.ingested', 'heartbeats:' || r.items, p_after => r.results)
    from (
      select sum(c.items) as items, jsonb_object_agg(c.result, c.items) as results
      from (
        select coalesce(u.result, 'stored') as result, count(*) as items
        from unnest(v_batch.results, v_batch.tss) as u (result, ts)
        group by 1
      ) c
    ) r
    where r.items > 0;
  end if;
  return query
    select u.item::integer, coalesce(u.result, 'stored'), u.reason, u.ts
    from unnest(v_batch.results, v_batch.reasons, v_batch.tss) with ordinality as u (result, reason, ts, item);
end
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement. The batch is a JSON array of objects with device_id, ts and the other columns of '
  'fleet.device_heartbeats except received_at. Answers each item in order: stored, duplicate (same device and 10-second bucket), '
  'quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). '
  'Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded ingest/ingest.sql
--! Included status/excused.sql
-- Written so that the views inline it; see fleet.expected_interval(). GREATEST() ignores null.
create or replace function fleet.excused(p_next_in_s integer, p_expected interval) returns interval
language sql
immutable
parallel safe
return greatest(p_next_in_s * interval '1 second' - p_expected, interval '0');

comment on function fleet.excused(integer, interval) is
  'How much longer than usual a device may be silent, because its newest heartbeat said when the next one comes (next_in_s). '
  'Silence is counted less this, so a device that keeps its promise is not late. 0 without a promise. '
  'Example: select fleet.excused(3600, ''60 s'');';
--! EndIncluded status/excused.sql
--! Included status/derive_status.sql
-- Written so that the views inline it; see fleet.expected_interval().
create or replace function fleet.derive_status(
  p_is_skewed boolean,
  p_last_received_at timestamptz,
  p_expected interval,
  p_offline_after interval,
  p_excused interval,
  p_now timestamptz
) returns text
language sql
immutable
parallel safe
return case
  when p_last_received_at is null then 'new'
  -- Never less than two intervals, because one lost heartbeat is no outage.
  when p_now - p_last_received_at - p_excused > greatest(p_offline_after, 2 * p_expected) then 'offline'
  when p_is_skewed then 'clock_skewed'
  when p_now - p_last_received_at - p_excused > fleet.late_after(p_expected) then 'late'
  else 'online'
end;

comment on function fleet.derive_status(boolean, timestamptz, interval, interval, interval, timestamptz) is
  'The status of a device at this time, by when it was last heard from: new (never), offline (silent for longer than '
  'settings.offline_after and than two expected intervals), clock_skewed (heard from, but its clock is wrong), late (silent for '
  'longer than fleet.late_after()), or online. Silence is counted less p_excused, which is fleet.excused(). '
  'Example: select fleet.derive_status(false, now() - interval ''3 min'', ''60 s'', ''10 min'', ''0'', now());';
--! EndIncluded status/derive_status.sql
--! Included transitions/network_of.sql
create or replace function fleet.network_of(p_ip inet) returns text
language sql
immutable
parallel safe
return text(network(set_masklen(p_ip, least(masklen(p_ip), case family(p_ip) when 4 then 24 else 48 end))));

comment on function fleet.network_of(inet) is
  'The network of an address: its /24, or its /48 of IPv6, as a provider gives one to a site. '
  'Example: select fleet.network_of(''198.51.100.7'');';
--! EndIncluded transitions/network_of.sql
--! Included transitions/beats_before.sql
-- In PL/pgSQL with a generic plan, because planning over all partitions takes ten times as long as the query.
create or replace function fleet.beats_before(p_device_id bigint, p_heard_at timestamptz, p_limit integer default 30)
returns table (
  ts timestamptz, battery_pct smallint, signal_dbm smallint, next_in_s integer, stopping text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_generic_plan
as $$
declare
  v_from timestamptz;
  v_until timestamptz;
begin
  -- The clock of the device may lag.
  select p_heard_at - s.max_late, p_heard_at + s.max_future into v_from, v_until from fleet.settings s;
  return query
    select b.ts, b.battery_pct, b.signal_dbm, b.next_in_s, b.stopping
    from (
      select h.ts, h.received_at, h.battery_pct, h.signal_dbm, h.next_in_s, h.stopping
      from fleet.device_heartbeats h
      where h.device_id = p_device_id and h.ts > v_from and h.ts <= v_until and h.received_at <= p_heard_at
      order by h.ts desc
      limit p_limit
    ) b
    where b.received_at > p_heard_at - interval '1 hour';
end
$$;

comment on function fleet.beats_before(bigint, timestamptz, integer) is
  'The newest heartbeats of a device that had arrived at a given time, in the hour before it, newest first. '
  'Example: select * from fleet.beats_before(42, now());';
--! EndIncluded transitions/beats_before.sql
--! Included transitions/silence_reason.sql
create or replace function fleet.silence_reason(p_device_id bigint, p_heard_at timestamptz) returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_newest record;
  v_charge smallint;
  v_strongest smallint;
begin
  -- Nearly always last status has what the device said last, and nothing in it needs a look at the heartbeats before.
  select ls.battery_pct, ls.signal_dbm, ls.next_in_s, ls.stopping into v_newest
  from fleet.device_last_status ls
  where ls.device_id = p_device_id and ls.last_received_at <= p_heard_at;
  if not found then
    -- What it said before the gap that its newest heartbeat ended.
    select ls.gap_battery_pct as battery_pct, ls.gap_signal_dbm as signal_dbm, ls.gap_next_in_s as next_in_s,
      ls.gap_stopping as stopping
    into v_newest
    from fleet.device_last_status ls
    where ls.device_id = p_device_id and ls.gap_from = p_heard_at;
  end if;
  if not found then
    select b.battery_pct, b.signal_dbm, b.next_in_s, b.stopping into v_newest
    from fleet.beats_before(p_device_id, p_heard_at, 1) b;
  end if;
  if v_newest.stopping is not null then
    return v_newest.stopping;
  end if;
  if v_newest.next_in_s is not null then
    return 'sleep';
  end if;
  if v_newest.battery_pct <= 5 or v_newest.signal_dbm <= -100 then
    -- Of a device that is being charged, the oldest of these is not the fullest.
    select (array_agg(b.battery_pct order by b.ts) filter (where b.battery_pct is not null))[1], max(b.signal_dbm)
    into v_charge, v_strongest
    from fleet.beats_before(p_device_id, p_heard_at) b;
    if v_newest.battery_pct <= 5 and v_newest.battery_pct < v_charge then
      return 'battery';
    end if;
    if v_newest.signal_dbm <= -100 and v_newest.signal_dbm <= v_strongest - 10 then
      return 'signal';
    end if;
  end if;
  return 'unknown';
end
$$;

comment on function fleet.silence_reason(bigint, timestamptz) is
  'Why a device fell silent that was last heard from at this time, by what it had said: the word of its stopping; sleep (it said '
  'when it would report next, and did not); battery (at 5 % or less, and less than in the half hour before); signal (-100 dBm or '
  'weaker, and at least 10 dB weaker than in the half hour before); or unknown. fleet.note_transitions() looks first whether '
  'ingest was down and whether others fell silent with it. Example: select fleet.silence_reason(42, now());';
--! EndIncluded transitions/silence_reason.sql
--! Included transitions/feed_base.sql
-- A sequence does not do: numbers are taken in one order and become visible in another, so a reader would skip what commits late.
-- Transaction ids have a bound below which everything is visible. They begin again in a store that was restored from a dump, and
-- some come twice after a failover that lost the last transactions; the base takes the positions past all that were handed out.
create or replace function fleet.feed_base() returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_jump constant bigint := 1::bigint << 32;
  v_cluster text := format(
    '%s/%s', (select c.system_identifier from pg_control_system() c), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
  );
  v_base bigint;
begin
  select f.base into v_base from fleet.transition_feed f where f.cluster = v_cluster;
  if found then
    return v_base;
  end if;
  perform from fleet.transition_feed f for update;
  select f.base into v_base from fleet.transition_feed f where f.cluster = v_cluster;
  if found then
    return v_base;
  end if;
  update fleet.transition_feed f
  set cluster = v_cluster,
    base = case when f.cluster = '' then 0 else greatest(
      f.base, coalesce((select max(t.position) from fleet.device_transitions t), 0)
    ) + c_jump - pg_current_xact_id()::text::bigint end
  returning f.base into v_base;
  return v_base;
end
$$;

comment on function fleet.feed_base() is
  'What is added to the id of a transaction for the position of its transitions in the feed. It grows when the store runs in '
  'another cluster than before, or on another timeline, so that positions never go back.';
--! EndIncluded transitions/feed_base.sql
--! Included transitions/was_ingest_down.sql
create or replace function fleet.was_ingest_down(p_heard_at timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select coalesce(
    case
      -- Nobody has looked since Postgres was down.
      when fleet.postgres_started_at() > w.looked_at then
        p_heard_at < fleet.postgres_started_at() and p_heard_at - w.newest_received_at >= -interval '105 seconds'
      else p_heard_at <= coalesce(w.gap_to, 'infinity') and p_heard_at - w.gap_from >= -interval '105 seconds'
    end,
    false
  )
  from fleet.silence_watch w
  where isfinite(w.looked_at);
$$;

comment on function fleet.was_ingest_down(timestamptz) is
  'Whether a device that was last heard from at this time fell silent because heartbeats could not be stored: Postgres was down, '
  'or fleet.watch_silence() saw that nothing came in from anybody.';
--! EndIncluded transitions/was_ingest_down.sql
--! Included transitions/find_incidents.sql
-- The devices of a group go offline over about an interval, but are overdue long before. So when the first of them goes offline, all
-- that fell silent with it can be counted. Each statement looks at all groups at once: a scan for each group of a large fleet
-- would take minutes.
create or replace function fleet.find_incidents(p_device_ids bigint[], p_now timestamptz) returns bigint[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_least integer := (select s.silence_min_devices from fleet.settings s);
  v_fallen bigint[];
  v_newest timestamptz;
  v_is_down boolean;
  v_began_at timestamptz;
  v_devices integer;
  v_cohorts bigint[];
  v_opened bigint[];
begin
  perform fleet.not_in_future(p_now);
  -- Those that go offline now.
  select array_agg(d.device_id) into v_fallen
  from fleet.device_state d
  join fleet.device_last_status ls using (device_id)
  where d.device_id = any (p_device_ids) and ls.noted_status is distinct from 'offline'
    and p_now - d.last_received_at - fleet.excused(ls.next_in_s, d.expected_interval)
      > greatest((select s.offline_after from fleet.settings s), 2 * d.expected_interval);
  if v_fallen is null then
    return null;
  end if;
  -- Two runs at the same time must not open an incident twice.
  perform pg_advisory_xact_lock(hashtextextended('fleet.find_incidents', 0));

  -- Ours, while nothing comes in from anybody, and for those who have not come back since. The silence of one or two devices
  -- proves nothing.
  v_newest := fleet.newest_received_at(p_now);
  v_is_down := fleet.is_ingest_down(v_newest, p_now) and v_least <= (
    select count(*)
    from (
      select from fleet.device_last_status ls
      where ls.last_received_at > v_newest - interval '10 minutes' and ls.last_received_at <= v_newest
      limit v_least
    ) f
  );
  select min(ls.last_received_at), count(*) into v_began_at, v_devices
  from fleet.device_last_status ls
  where ls.device_id = any (v_fallen) and (v_is_down or fleet.was_ingest_down(ls.last_received_at));
  if v_is_down or v_devices >= v_least then
    with opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      select 'ingest', '(all)', case when v_is_down then v_newest else v_began_at end, p_now,
        case when v_is_down then (
          select count(*)
          from fleet.device_last_status ls
          where ls.last_received_at > v_newest - interval '10 minutes' and ls.last_received_at <= v_newest
        ) else v_devices end
      where not exists (select from fleet.incidents i where i.kind = 'ingest' and i.ended_at is null)
      returning incident_id
    )
    select array_agg(o.incident_id) into v_opened from opened o;
  else
    with fallen as (
      select d.cohort, ls.last_received_at as heard_at, ls.late_after_s
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      where ls.device_id = any (v_fallen)
        and fleet.incident_of(d.cohort, null, ls.last_received_at, ls.late_after_s) is null
    ),
    -- In a cohort that fell silent together, more than one in a hundred goes offline within a minute or two. Usually this spares
    -- the look at every device of a large cohort.
    cohorts as materialized (
      select f.cohort, f.middle - f.around as since, f.middle + f.around as until
      from (
        select f.cohort, count(*) as devices,
          -- Not the earliest and the latest: a device that overslept was heard from hours ago.
          percentile_disc(0.5) within group (order by f.heard_at) as middle,
          greatest(max(f.late_after_s), 105) * interval '1 second' as around
        from fallen f
        group by f.cohort
      ) f
      cross join lateral (
        select coalesce(
          (select k.devices from fleet.fleet_counts k where k.cohort = f.cohort and k.place > 1 and fleet.counts_hold(p_now)),
          (select count(*) from fleet.devices d where d.cohort = f.cohort and d.revoked_at is null)
        ) as devices
      ) s
      where f.devices * 100 >= s.devices and s.devices >= v_least
    ),
    counted as (
      select m.cohort, count(*) as active, count(*) filter (where m.is_quiet) as quiet,
        min(m.heard_at) filter (where m.is_quiet) as began_at
      from (
        select c.cohort, ls.last_received_at as heard_at,
          ls.last_received_at <= c.until
            and p_now - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' as is_quiet
        from cohorts c
        join fleet.devices d on d.cohort = c.cohort
        join fleet.device_last_status ls on ls.device_id = d.device_id
        where d.revoked_at is null and ls.last_received_at >= c.since
      ) m
      group by m.cohort
    ),
    opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      select 'cohort', c.cohort, c.began_at, p_now, c.quiet
      from counted c
      where c.quiet >= v_least and c.quiet * 2 >= c.active
      order by c.cohort
      returning incident_id
    )
    select array_agg(o.incident_id) into v_cohorts from opened o;

    with fallen as (
      select fleet.network_of(ls.ip) as network, ls.last_received_at as heard_at, ls.late_after_s
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      where ls.device_id = any (v_fallen) and ls.ip is not null
        and fleet.incident_of(d.cohort, fleet.network_of(ls.ip), ls.last_received_at, ls.late_after_s) is null
    ),
    -- The marks find the silent ones of a network without a look at the others.
    networks as materialized (
      select f.network, f.middle - f.around as since, f.middle + f.around as until
      from (
        select f.network, percentile_disc(0.5) within group (order by f.heard_at) as middle,
          greatest(max(f.late_after_s), 105) * interval '1 second' as around
        from fallen f
        group by f.network
      ) f
      join (
        select fleet.network_of(ls.ip) as network, count(*) as silent
        from fleet.device_last_status ls
        where ls.is_silent and p_now - ls.last_received_at < interval '1 day' and exists (select from fallen)
        group by 1
      ) m using (network)
      where m.silent >= v_least
    ),
    counted as (
      select m.network, count(*) as active, count(*) filter (where m.is_quiet) as quiet,
        min(m.heard_at) filter (where m.is_quiet) as began_at
      from (
        select n.network, ls.last_received_at as heard_at,
          ls.last_received_at <= n.until
            and p_now - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' as is_quiet
        from networks n
        join fleet.device_last_status ls on fleet.network_of(ls.ip) = n.network
        where ls.noted_status <> 'revoked' and ls.last_received_at >= n.since
      ) m
      group by m.network
    ),
    opened as (
      insert into fleet.incidents (kind, subject, began_at, seen_at, devices)
      select 'network', c.network, c.began_at, p_now, c.quiet
      from counted c
      where c.quiet >= v_least and c.quiet * 2 >= c.active
      order by c.network
      returning incident_id
    )
    select v_cohorts || array_agg(o.incident_id) into v_opened from opened o;
  end if;
  if v_opened is not null and exists (select from fleet.webhooks) then
    perform fleet.queue_messages(null, v_opened, null);
  end if;
  return v_opened;
end
$$;

comment on function fleet.find_incidents(bigint[], timestamptz) is
  'Opens the incidents that explain why some of these devices go offline at this time, and queues the messages about them: ingest '
  'is down, or at least half of the devices of a cohort or network that were active fell silent together, and at least '
  'settings.silence_min_devices. Returns those that it opened; null if there are none. Called each minute by fleet.mark_silent(), '
  'before the transitions are written.';
--! EndIncluded transitions/find_incidents.sql
--! Included transitions/incident_of.sql
create or replace function fleet.incident_of(p_cohort text, p_network text, p_heard_at timestamptz, p_late_after_s integer)
returns bigint
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select i.incident_id
  from fleet.incidents i
  cross join fleet.settings s
  where i.ended_at is null
    and (
      i.kind = 'ingest'
      or i.kind = 'cohort' and i.subject = p_cohort
      or i.kind = 'network' and i.subject = p_network
    )
    -- A device that is lost later has a reason of its own.
    and case i.kind
      when 'ingest' then p_heard_at - i.began_at >= -greatest(s.offline_after, interval '105 seconds')
        and p_heard_at <= coalesce((select w.gap_to from fleet.silence_watch w where w.gap_to > i.began_at), 'infinity')
      else p_heard_at - i.began_at >= -greatest(p_late_after_s, 105) * interval '1 second'
        and p_heard_at - i.began_at <= greatest(2 * greatest(p_late_after_s, 105) * interval '1 second', interval '10 minutes')
    end
  order by case i.kind when 'ingest' then 1 when 'cohort' then 2 else 3 end, i.incident_id desc
  limit 1;
$$;

comment on function fleet.incident_of(text, text, timestamptz, integer) is
  'The open incident of a device of this cohort and network that fell silent at this time, and is late after so many seconds; null '
  'if there is none.';
--! EndIncluded transitions/incident_of.sql
--! Included transitions/status_changes.sql
-- A device's status is a function of when it was heard from, what it said, and the clock. So a change that nobody saw, because a
-- run was missed or Postgres was down, is found later with the time at which it happened: nothing has to be watched all the time.
create or replace function fleet.status_changes(p_device_ids bigint[], p_now timestamptz default null)
returns setof fleet.device_transitions
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
begin
  return query
    with given as (
      select d.device_id, d.cohort, d.revoked_at, ls.noted_status as noted, ls.noted_since, ls.noted_reason,
        ls.last_received_at as heard_at, case ls.status when 'ok' then 'online' else ls.status end as said,
        -- A gap is looked at once, when the heartbeat that ended it arrives.
        case when p_now is null then ls.gap_from end as gap_from,
        fleet.excused(ls.gap_next_in_s, i.expected) as gap_excused,
        ls.battery_pct, ls.network_type, ls.agent_version,
        i.expected, s.offline_after, fleet.excused(ls.next_in_s, i.expected) as excused,
        coalesce(p_now, clock_timestamp()) as seen_at
      from fleet.devices d
      join fleet.device_last_status ls using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      cross join fleet.settings s
      cross join lateral (
        select fleet.expected_interval(
          d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, coalesce(p_now, ls.last_received_at)
        ) as expected
      ) i
      where d.device_id = any (p_device_ids) and ls.noted_status is not null
      offset 0
    ),
    -- Compared as intervals, a month counts 30 days; so it does in seconds.
    timed as (
      select g.*,
        g.gap_from + g.gap_excused + fleet.late_after(g.expected) as gap_late_at,
        g.gap_from + g.gap_excused + o.silence as gap_offline_at,
        g.heard_at + g.excused + fleet.late_after(g.expected) as late_at,
        g.heard_at + g.excused + o.silence as offline_at,
        fleet.is_ahead(g.noted_since, g.seen_at) as is_ahead
      from given g
      cross join lateral (
        select extract(epoch from greatest(g.offline_after, 2 * g.expected)) * interval '1 second' as silence
      ) o
    ),
    steps as (
      select t.*, v.nth, v.to_status, v.from_when
      from timed t
      cross join lateral (
        select
          t.noted in ('late', 'offline') and t.noted_since <= t.gap_from as was_back,
          -- It is late or offline in the silence that the newest heartbeat began, or was until that arrived.
          t.noted in ('late', 'offline') and t.noted_since > coalesce(t.gap_from, t.heard_at) as is_silent,
          t.heard_at is not null and case
            when p_now is null then true
            when t.noted in ('late', 'offline', 'revoked') then t.noted_since <= t.heard_at or t.is_ahead
            else true
          end as is_heard
      ) k
      cross join lateral (
        values
          (1, 'online', t.gap_from, k.was_back),
          (2, 'late', t.gap_late_at, t.heard_at > t.gap_late_at and not k.is_silent and t.noted <> 'clock_skewed'),
          (3, 'offline', t.gap_offline_at, t.heard_at > t.gap_offline_at and not (k.is_silent and t.noted = 'offline')),
          (
            4, 'online', t.heard_at,
            k.is_heard and (
              t.heard_at > t.gap_offline_at or t.noted = 'offline' and not coalesce(k.was_back, false) or t.noted = 'revoked'
            )
          ),
          (5, t.said, t.heard_at, k.is_heard),
          (6, 'late', t.late_at, p_now > t.late_at and t.said <> 'clock_skewed' and k.is_heard),
          (7, 'offline', t.offline_at, p_now > t.offline_at and not (k.is_silent and t.noted = 'offline' and not t.is_ahead)),
          -- What the steps above do not explain: other settings, or another interval.
          (
            8,
            (
              select case when s.status = 'online' and t.said = 'unity_down' then t.said else s.status end
              from fleet.derive_status(
                t.said = 'clock_skewed', t.heard_at, t.expected, t.offline_after, t.excused, p_now
              ) s (status)
            ),
            p_now, p_now is not null and t.heard_at is not null
          )
      ) v (nth, to_status, from_when, applies)
      where v.applies and t.revoked_at is null
      union all
      select t.*, 9, 'revoked', t.revoked_at
      from timed t
      where t.revoked_at is not null
    ),
    followed as (
      select s.*, lag(s.to_status, 1, s.noted) over (partition by s.device_id order by s.nth) as from_status
      from steps s
    ),
    changed as (
      select f.*,
        -- Never before the change that went before, and never in the future.
        least(
          f.seen_at, greatest(max(f.from_when) over w, case when not f.is_ahead then f.noted_since end)
        ) as changed_at
      from followed f
      where f.to_status <> f.from_status
      window w as (partition by f.device_id order by f.nth)
    )
    select null::bigint, null::bigint, c.device_id, c.cohort, c.seen_at, c.changed_at,
      case
        when c.from_status in ('offline', 'revoked') and c.to_status not in ('offline', 'revoked') then 'back'
        else c.to_status
      end,
      c.to_status, c.from_status,
      lag(c.changed_at, 1, c.noted_since) over (partition by c.device_id order by c.nth), null::interval,
      -- Until the silence is over, its reason is what was noted.
      case when c.from_status in ('late', 'offline') and lag(c.nth) over (partition by c.device_id order by c.nth) is null
        then c.noted_reason end,
      null::bigint, c.battery_pct, c.network_type, c.agent_version
    from changed c
    order by c.device_id, c.nth;
end
$$;

comment on function fleet.status_changes(bigint[], timestamptz) is
  'The changes of status that have not been noted of these devices, in their order: without p_now up to the newest heartbeat, as '
  'ingest notes them; with it up to that time. transition_id, position and incident_id are null; reason is that of the silence '
  'which ended. Example: select * from fleet.status_changes(array[42], now());';
--! EndIncluded transitions/status_changes.sql
--! Included transitions/note_transitions.sql
-- Ingest has locked the rows already. Other callers lock them here, in the order of ingest. Ingest never notifies the notifier,
-- because a NOTIFY takes a lock that commits would wait for; the notifier looks every two seconds.
create or replace function fleet.note_transitions(p_device_ids bigint[], p_now timestamptz default null) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_changes fleet.device_transitions[];
  v_base bigint;
  v_ids bigint[];
begin
  if p_now is not null then
    perform fleet.not_in_future(p_now);
    -- Only those that change are locked. What they do meanwhile is seen afterwards.
    p_device_ids := array(select distinct c.device_id from fleet.status_changes(p_device_ids, p_now) c);
    perform from fleet.device_last_status ls where ls.device_id = any (p_device_ids) order by ls.device_id for update;
  end if;
  v_changes := array(select c from fleet.status_changes(p_device_ids, p_now) c);
  if cardinality(v_changes) = 0 then
    return 0;
  end if;

  v_base := fleet.feed_base();
  with changes as (
    select c.*, ls.ip, ls.late_after_s,
      -- When the silence began that this row tells of.
      case when c.status in ('late', 'offline') then
        case when ls.last_received_at <= c.since then ls.last_received_at else ls.gap_from end
      end as heard_at
    from unnest(v_changes) with ordinality as c (
      transition_id, position, device_id, cohort, at, since, event, status, previous_status, previous_since, previous_for, reason,
      incident_id, battery_pct, network_type, agent_version, nth
    )
    join fleet.device_last_status ls using (device_id)
  ),
  explained as (
    select c.*, i.incident_id as in_incident,
      case when c.heard_at is not null then coalesce(
        (select case n.kind when 'ingest' then 'ingest_down' else n.kind || '_silent' end
          from fleet.incidents n where n.incident_id = i.incident_id),
        case when fleet.was_ingest_down(c.heard_at) then 'ingest_down' end,
        fleet.silence_reason(c.device_id, c.heard_at)
      ) end as why
    from changes c
    left join lateral (
      select fleet.incident_of(c.cohort, fleet.network_of(c.ip), c.heard_at, c.late_after_s) as incident_id where c.heard_at is not null
    ) i on true
  ),
  told as (
    -- What ends a silence has its reason and its incident.
    select e.*,
      coalesce(e.why, e.reason, case when e.event = 'back' then lag(e.why) over w end) as known_reason,
      coalesce(e.in_incident, case when e.event = 'back' then coalesce(
        lag(e.in_incident) over w,
        (
          select t.incident_id from fleet.device_transitions t
          where t.device_id = e.device_id and t.status = 'offline'
          order by t.transition_id desc
          limit 1
        )
      ) end) as known_incident
    from explained e
    window w as (partition by e.device_id order by e.nth)
  ),
  written as (
    insert into fleet.device_transitions (
      position, device_id, cohort, at, since, event, status, previous_status, previous_since, reason, incident_id, battery_pct,
      network_type, agent_version
    )
    select v_base + pg_current_xact_id()::text::bigint, t.device_id, t.cohort, t.at, t.since, t.event, t.status,
      t.previous_status, t.previous_since, t.known_reason, t.known_incident, t.battery_pct, t.network_type, t.agent_version
    from told t
    order by t.nth
    returning transition_id, device_id, since, status, reason, incident_id
  ),
  noted as (
    update fleet.device_last_status ls
    set noted_status = w.status, noted_since = w.since,
      noted_reason = case when w.status in ('late', 'offline') then w.reason end
    from (select distinct on (w.device_id) w.* from written w order by w.device_id, w.transition_id desc) w
    where ls.device_id = w.device_id
  )
  select array_agg(w.transition_id order by w.transition_id) into v_ids from written w;
  if exists (select from fleet.webhooks) then
    perform fleet.queue_messages(v_ids, null, null);
  end if;
  return cardinality(v_ids);
end
$$;

comment on function fleet.note_transitions(bigint[], timestamptz) is
  'Writes the changes of status of these devices that were not noted yet to fleet.device_transitions, with their reasons, and '
  'queues the messages about them: without p_now, of devices that a heartbeat of this transaction came from. Returns how many. '
  'Called by ingest and each minute by fleet.mark_silent().';
--! EndIncluded transitions/note_transitions.sql
--! Included transitions/note_first_status.sql
create or replace function fleet.note_first_status(p_device_ids bigint[], p_now timestamptz) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows integer;
begin
  perform fleet.not_in_future(p_now);
  update fleet.device_last_status ls
  set noted_status = case when i.is_first then i.status else ls.noted_status end,
    noted_since = case
      when not i.is_first then ls.noted_since
      when i.status in ('late', 'offline') then p_now
      else ls.last_received_at
    end,
    late_after_s = i.late_after_s
  from (
    select d.device_id, l.noted_status is null or l.last_received_at is null as is_first,
      floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))::integer as late_after_s,
      case
        when d.revoked_at is not null then 'revoked'
        when s.status = 'online' and l.status = 'unity_down' then 'unity_down'
        else s.status
      end as status
    from fleet.devices d
    join fleet.device_last_status l using (device_id)
    left join fleet.cohorts c on c.cohort = d.cohort
    cross join lateral (
      select fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
    ) e
    cross join lateral (
      select fleet.derive_status(
        l.status = 'clock_skewed', l.last_received_at, e.expected, (select t.offline_after from fleet.settings t),
        fleet.excused(l.next_in_s, e.expected), p_now
      ) as status
    ) s
    where d.device_id = any (p_device_ids)
      -- fleet.reconcile() forgets what was heard while the clock ran ahead.
      and (l.noted_status is null or l.late_after_s is null or l.last_received_at is null and l.noted_status not in ('new', 'revoked'))
    order by d.device_id
    for update of l
  ) i
  where ls.device_id = i.device_id;
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;

comment on function fleet.note_first_status(bigint[], timestamptz) is
  'Notes the status of devices that were never looked at, because the store had no transitions before, or that have no heartbeat '
  'any more. That is no transition. Returns how many. Called by fleet.mark_silent().';
--! EndIncluded transitions/note_first_status.sql
--! Included transitions/devices_to_note.sql
create or replace function fleet.devices_to_note(p_now timestamptz default now()) returns bigint[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
begin
  return (
    select array_agg(f.device_id order by f.device_id)
    from (
      select ls.device_id
      from fleet.device_last_status ls
      where case
        when ls.late_after_s is null then true
        when ls.last_received_at is null then ls.noted_status is distinct from 'new' and ls.noted_status is distinct from 'revoked'
        -- Cheap conditions: most devices are left out by the first, because they were heard from a moment ago.
        when p_now - ls.last_received_at <= greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' then
          ls.noted_status is distinct from case ls.status when 'ok' then 'online' else ls.status end
          and ls.noted_status is distinct from 'revoked'
        -- In a cohort that is slowed down, most devices are heard from more rarely than their own interval says.
        when ls.noted_status = case ls.status when 'ok' then 'online' else ls.status end and exists (select from fleet.cohorts) then
          p_now - ls.last_received_at > (
            select fleet.late_after(
              fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now)
            )
            from fleet.devices d
            left join fleet.cohorts c using (cohort)
            where d.device_id = ls.device_id
          )
        when ls.noted_status = 'offline' then p_now - ls.last_received_at <= (select s.offline_after from fleet.settings s)
          or ls.noted_since <= ls.last_received_at or ls.noted_since > p_now
        else ls.noted_status is distinct from 'revoked'
      end
      offset 0
    ) f
  );
end
$$;

comment on function fleet.devices_to_note(timestamptz) is
  'The devices whose status may have changed since it was last noted, by cheap conditions; null if there are none. '
  'Example: select fleet.devices_to_note();';
--! EndIncluded transitions/devices_to_note.sql
--! Included transitions/end_incidents.sql
create or replace function fleet.end_incidents(p_now timestamptz default now()) returns bigint[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_ended bigint[];
begin
  perform fleet.not_in_future(p_now);
  with over as (
    select i.incident_id
    from fleet.incidents i
    cross join fleet.settings s
    cross join fleet.silence_watch w
    cross join lateral (
      select count(*) as devices, count(*) filter (where ls.noted_status not in ('late', 'offline')) as back
      from (
        select distinct t.device_id
        from fleet.device_transitions t
        where t.incident_id = i.incident_id and t.status = 'offline'
      ) t
      -- A device that was deleted or revoked since does not come back.
      left join fleet.device_last_status ls using (device_id)
      where ls.noted_status is not null and ls.noted_status <> 'revoked'
    ) m
    where i.ended_at is null
      and (
        m.back * 2 >= m.devices
        -- Heartbeats come in again, and those that could come back did.
        or i.kind = 'ingest' and (w.gap_from is null or w.gap_to is not null)
          and p_now - greatest(w.gap_to, i.seen_at) > s.offline_after
      )
  ),
  ended as (
    update fleet.incidents i
    set ended_at = p_now
    from over o
    where i.incident_id = o.incident_id
    returning i.incident_id
  )
  select array_agg(e.incident_id order by e.incident_id) into v_ended from ended e;
  if v_ended is not null and exists (select from fleet.webhooks) then
    perform fleet.queue_messages(null, null, v_ended);
  end if;
  return v_ended;
end
$$;

comment on function fleet.end_incidents(timestamptz) is
  'Ends the incidents of which at least half of the devices are back, and that of ingest when heartbeats have come in again for '
  'settings.offline_after; queues the messages about them, and returns them; null if there are none. Called each minute by '
  'fleet.mark_silent().';
--! EndIncluded transitions/end_incidents.sql
--! Included transitions/record_device_changes.sql
create or replace function fleet.record_device_changes() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  insert into fleet.changed_devices (device_id)
  select n.device_id
  from changed n
  join was o using (device_id)
  where n.heartbeat_interval <> o.heartbeat_interval or n.revoked_at is distinct from o.revoked_at
  on conflict do nothing;
  return null;
end
$$;

comment on function fleet.record_device_changes() is
  'Trigger on fleet.devices: remembers the devices that were revoked or have another interval, for fleet.note_changed_devices().';
--! EndIncluded transitions/record_device_changes.sql
--! Included transitions/note_changed_devices.sql
-- Apart from the update of the devices, and a few at a time: ingest locks the rows of last status, in another order, and must not
-- wait for a long transaction that changed devices.
create or replace function fleet.note_changed_devices(p_max_rows integer default 5000, p_now timestamptz default now())
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_ids bigint[];
begin
  perform fleet.not_in_future(p_now);
  with taken as (
    delete from fleet.changed_devices c
    where c.device_id in (
      select i.device_id from fleet.changed_devices i order by i.device_id limit p_max_rows for update skip locked
    )
    returning c.device_id
  )
  select coalesce(array_agg(t.device_id order by t.device_id), array[]::bigint[]) into v_ids from taken t;
  update fleet.device_last_status ls
  set late_after_s = f.late_after_s
  from (
    select l.device_id, floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))::integer as late_after_s
    from fleet.device_last_status l
    join fleet.devices d using (device_id)
    where l.device_id = any (v_ids)
    order by l.device_id
    for update of l
  ) f
  where ls.device_id = f.device_id and ls.late_after_s is distinct from f.late_after_s;
  perform fleet.note_transitions(v_ids, p_now);
  return cardinality(v_ids);
end
$$;

comment on function fleet.note_changed_devices(integer, timestamptz) is
  'Notes what follows from a change of devices, for at most so many of them: that they were revoked, or are no longer, and after '
  'which silence they are late. Returns how many. Called each minute by fleet.mark_silent().';
--! EndIncluded transitions/note_changed_devices.sql
--! Included transitions/transitions_after.sql
create or replace function fleet.transitions_after(
  p_after text default null,
  p_limit integer default 100,
  p_cohort text default null
) returns table (
  cursor text, transition_id bigint, device_id bigint, alias text, cohort text, at timestamptz, since timestamptz, event text,
  status text, previous_status text, previous_for interval, reason text, incident_id bigint, battery_pct smallint,
  network_type text, agent_version text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := regexp_match(p_after, '^(\d{1,18})-(\d{1,18})$');
  v_position bigint;
  v_transition bigint;
  v_end bigint;
begin
  if p_after is not null and v_parts is null then
    raise exception using
      errcode = 'FL422',
      message = 'after is not a cursor of this feed',
      hint = 'Take it from an earlier answer, or leave it out to begin with the oldest transition.';
  end if;
  v_position := coalesce(v_parts[1]::bigint, 0);
  v_transition := coalesce(v_parts[2]::bigint, 0);
  -- Transactions that still run may have earlier positions.
  select f.base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint into v_end from fleet.transition_feed f;
  -- Two queries, so that each has its index: of a small cohort the transitions of all others are not read.
  if p_cohort is null then
    return query
      select format('%s-%s', t.position, t.transition_id), t.transition_id, t.device_id, d.alias, t.cohort, t.at, t.since, t.event,
        t.status, t.previous_status, t.previous_for, t.reason, t.incident_id, t.battery_pct, t.network_type, t.agent_version
      from fleet.device_transitions t
      left join fleet.devices d using (device_id)
      where (t.position, t.transition_id) > (v_position, v_transition)
        and t.position < v_end
      order by t.position, t.transition_id
      limit p_limit;
  else
    return query
      select format('%s-%s', t.position, t.transition_id), t.transition_id, t.device_id, d.alias, t.cohort, t.at, t.since, t.event,
        t.status, t.previous_status, t.previous_for, t.reason, t.incident_id, t.battery_pct, t.network_type, t.agent_version
      from fleet.device_transitions t
      left join fleet.devices d using (device_id)
      where t.cohort = p_cohort and (t.position, t.transition_id) > (v_position, v_transition)
        and t.position < v_end
      order by t.position, t.transition_id
      limit p_limit;
  end if;
end
$$;

comment on function fleet.transitions_after(text, integer, text) is
  'The feed of all transitions in the order in which they became visible: those after the cursor of an earlier row, or the oldest '
  'ones. None is skipped and none comes twice. Example: select * from fleet.transitions_after(null, 10);';
--! EndIncluded transitions/transitions_after.sql
--! Included transitions/transitions_of.sql
create or replace function fleet.transitions_of(
  p_device_id bigint, p_before bigint default null, p_limit integer default 100, p_cohorts text[] default null
) returns setof fleet.device_transitions
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.devices d where d.device_id = p_device_id and (p_cohorts is null or d.cohort = any (p_cohorts))
  ) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  return query
    select t.*
    from fleet.device_transitions t
    where t.device_id = p_device_id and t.transition_id < coalesce(p_before, 9223372036854775807)
      and (p_cohorts is null or t.cohort = any (p_cohorts))
    order by t.transition_id desc
    limit p_limit;
end
$$;

comment on function fleet.transitions_of(bigint, bigint, integer, text[]) is
  'The transitions of a device, newest first, before a transition_id if one is given, and only those in some '
  'cohorts if these are given. '
  'Example: select at, event, reason, previous_for from fleet.transitions_of(42);';
--! EndIncluded transitions/transitions_of.sql
--! Included transitions/recent_changes.view.sql
create or replace view fleet.recent_changes with (security_invoker = true) as
select t.transition_id, t.at, t.since, t.device_id, d.alias, t.cohort, t.event, t.previous_status, t.previous_for, t.reason,
  t.incident_id
from fleet.device_transitions t
left join fleet.devices d using (device_id)
-- Only the first comparison can use the index.
where t.at > now() - interval '1 hour' and t.event <> 'late' and not (t.event = 'online' and t.previous_status = 'late')
order by t.at desc, t.transition_id desc;

comment on view fleet.recent_changes is
  'What changed in the last hour, newest first: fleet.device_transitions with the names of the devices, without those that were '
  'only late. Example: select alias, event, reason, previous_for from fleet.recent_changes limit 20;';
--! EndIncluded transitions/recent_changes.view.sql
--! Included status/marks_hold.sql
create or replace function fleet.marks_hold(p_age interval default null) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select m.marked_at <= now() and now() <= m.marked_at + m.base / 4
    and s.offline_after >= m.base and coalesce(p_age, s.offline_after) >= m.base
  from fleet.silence_marks m
  cross join fleet.settings s;
$$;

comment on function fleet.marks_hold(interval) is
  'Whether every device that has been silent for at least this long (default: settings.offline_after) has the mark '
  'device_last_status.is_silent. Devices that are asked for a heartbeat less than twice in that time are excepted. If false, '
  'read without the mark. See fleet.mark_silent().';
--! EndIncluded status/marks_hold.sql
--! Included status/device_state.view.sql
-- The setting is a subquery. If fleet.settings were joined, the planner would take its one row for hundreds, and all later
-- estimates would be wrong too.
create or replace view fleet.device_state with (security_invoker = true) as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    ls.status = 'clock_skewed', ls.last_received_at, i.expected, (select s.offline_after from fleet.settings s),
    fleet.excused(ls.next_in_s, i.expected), now()
  ) as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_received_at)::bigint as seconds_since,
  ls.last_received_at, i.asked as heartbeat_interval, d.enrolled_at, ls.is_silent, ls.status as said,
  i.expected as expected_interval,
  coalesce(
    ls.noted_reason,
    case when ls.next_in_s is not null and now() - ls.last_received_at > fleet.late_after(i.expected)
      then coalesce(ls.stopping, 'sleep') end
  ) as reason,
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra,
ls.next_in_s, ls.stopping
--! EndIncluded status/reported_fields.inc.sql
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
  'stored status). Also has the interval by which status is judged; silence is counted less '
  'fleet.excused(next_in_s, expected_interval). Used by the other views and fleet.list_devices(). '
  'Example: select alias, expected_interval from fleet.device_state where device_id = 42;';
--! EndIncluded status/device_state.view.sql
--! Included status/device_status.view.sql
create or replace view fleet.device_status with (security_invoker = true) as
select ls.device_id, ls.alias, ls.cohort, ls.status, ls.last_ts, ls.seconds_since, ls.last_received_at, ls.heartbeat_interval,
  ls.enrolled_at, ls.reason,
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra,
ls.next_in_s, ls.stopping
--! EndIncluded status/reported_fields.inc.sql
from fleet.device_state ls;

comment on view fleet.device_status is
  'Each enrolled device: its status (new, online, late, offline or clock_skewed), when it was last heard from, why it is '
  'silent (reason, as in fleet.device_transitions; null if it is not), and what it reported last. '
  'Example: select status, count(*) from fleet.device_status group by status;';
--! EndIncluded status/device_status.view.sql
--! Included status/device_status_legacy.view.sql
-- Partitions are read newest first until one has a row.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    q.received_at > coalesce(h.heard_at, '-infinity') and q.is_skewed
      or h.heard_at - h.ts > s.allowed_lag or a.heard_at - h.ts > greatest(s.allowed_lag, 2 * d.heartbeat_interval),
    greatest(h.heard_at, a.heard_at, r.heard_at), i.expected, s.offline_after,
    fleet.excused(ls.next_in_s, i.expected), now()
  ) as status,
  h.ts as last_ts,
  extract(epoch from now() - greatest(h.heard_at, a.heard_at, r.heard_at))::bigint as seconds_since,
  greatest(h.heard_at, a.heard_at, r.heard_at) as last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at,
  coalesce(
    (
      select case when t.status in ('late', 'offline') then t.reason end
      from fleet.device_transitions t
      where t.device_id = d.device_id
      order by t.transition_id desc
      limit 1
    ),
    case when ls.next_in_s is not null
      and now() - greatest(h.heard_at, a.heard_at, r.heard_at) > fleet.late_after(i.expected)
      then coalesce(ls.stopping, 'sleep') end
  ) as reason,
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra,
ls.next_in_s, ls.stopping
--! EndIncluded status/reported_fields.inc.sql
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (  -- as in fleet.device_state
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
cross join lateral (
  select s.offline_after, s.max_future, s.max_late,
    fleet.allowed_lag(s.offline_after, s.max_late) as allowed_lag
  from fleet.settings s
  limit 1
) s
left join lateral (
  select b.*, case when b.received_at <= now() + s.max_future then b.received_at else b.ts end as heard_at
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts <= now() + s.max_future
  order by b.ts desc
  limit 1
) h on true
left join lateral (
  select max(b.received_at) as heard_at
  from fleet.heartbeat_quarantine b
  where b.device_id = d.device_id and b.received_at <= now() + s.max_future
) r on true
-- The newest refused heartbeat that says more than the newest stored one; see fleet.record_others().
left join lateral (
  select b.received_at, b.payload,
    b.received_at - b.ts > s.allowed_lag or b.ts - b.received_at > s.max_future as is_skewed
  from fleet.heartbeat_quarantine b
  where b.device_id = d.device_id and b.received_at <= now() + s.max_future
    and (h.ts is null or h.ts < b.ts or b.received_at - h.ts > s.allowed_lag)
  order by b.received_at desc, b.ts desc
  limit 1
) q on true
-- What a refused heartbeat says, if it arrived after the newest stored one. Without the row type of device_heartbeats, so that its
-- columns can be changed.
cross join lateral (
  select
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra,
ls.next_in_s, ls.stopping
--! EndIncluded status/reported_fields.inc.sql
  from (select h.*) ls
  where q.received_at is null or q.received_at <= h.heard_at
  union all
  select
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra,
ls.next_in_s, ls.stopping
--! EndIncluded status/reported_fields.inc.sql
  from jsonb_populate_record(null::fleet.device_last_status, fleet.reported_values(q.payload)) ls
  where q.received_at > coalesce(h.heard_at, '-infinity')
) ls
-- Heartbeats that arrived after the newest one. They matter only if the newest one alone does not make the device online.
left join lateral (
  select max(b.received_at) as heard_at
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts < h.ts
    -- The hour more is for sessions in a zone whose clocks change.
    and b.ts >= now() - s.max_late - greatest(s.offline_after, 2 * i.expected) - fleet.excused(ls.next_in_s, i.expected)
      - interval '1 hour'
    and b.received_at <= now() + s.max_future
    and now() - least(h.ts, h.heard_at) > least(s.offline_after, s.allowed_lag, fleet.late_after(i.expected))
) a on true
where d.revoked_at is null;

comment on view fleet.device_status_legacy is
  'The same as fleet.device_status, but read from the stored and the quarantined heartbeats and without '
  'fleet.device_last_status. What was neither stored nor quarantined, such as a duplicate, does not count here. Slow: for '
  'comparison, and the server''s fallback (READ_FROM_LAST_STATUS=false). '
  'Example: select * from fleet.device_status_legacy where device_id = 42;';
--! EndIncluded status/device_status_legacy.view.sql
--! Included status/devices_offline.view.sql
-- Only one of the two halves runs: the choice is made once, before the first row. Devices are sorted before they are joined, so
-- that a reader who wants the first ones does not wait for all. OFFSET 0 keeps the planner from joining the whole fleet to a few
-- devices, because it cannot guess how many are offline.
create or replace view fleet.devices_offline with (security_invoker = true) as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip,
  ls.last_received_at, d.reason
from (
  select l.device_id, l.last_received_at
  from (
    select m.device_id, m.last_received_at, m.next_in_s
    from fleet.device_last_status m
    where fleet.marks_hold() and m.is_silent
    union all
    select a.device_id, a.last_received_at, a.next_in_s
    from fleet.device_last_status a
    where not fleet.marks_hold()
  ) l
  -- Nobody is offline before the time for which it announced its next heartbeat.
  where now() - l.last_received_at > greatest((select s.offline_after from fleet.settings s), l.next_in_s * interval '1 second')
  order by l.last_received_at
) ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where d.status = 'offline'
order by ls.last_received_at;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first, with the reason as in fleet.device_transitions. '
  'Example: select * from fleet.devices_offline where seconds_since > 720;';
--! EndIncluded status/devices_offline.view.sql
--! Included status/unity_down.view.sql
-- As in fleet.devices_offline, devices are sorted before they are joined.
create or replace view fleet.unity_down with (security_invoker = true) as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.agent_version
from (
  select l.device_id, l.last_received_at
  from fleet.device_last_status l
  where l.status <> 'ok' and l.unity_running is false
  order by l.last_received_at desc
) ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where d.status in ('online', 'late', 'clock_skewed')
order by ls.last_received_at desc;

comment on view fleet.unity_down is
  'Devices that are heard from (online, late or clock_skewed) and report that their Unity app is not running. '
  'Example: select alias from fleet.unity_down;';
--! EndIncluded status/unity_down.view.sql
--! Included status/list_devices.sql
-- One page by keyset. The query is built for each call: the best index depends on the arguments, and one plan for all arguments
-- would suit none of them. Candidates are found in order of device_id by cheap conditions that every device with this status
-- meets. Only a candidate's status is derived, and reading stops at the end of the page.
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
-- Read an index in order. Too low or too high an estimate must not make it read and sort a whole table.
set enable_bitmapscan = off
set enable_seqscan = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set random_page_cost = 1
as $$
declare
  c_small_cohort constant integer := 5000;
  v_shortest interval;
  v_longest interval;
  v_where text := '';
  v_found text;
  v_filter text := case
    when p_status = 'unity_down'
      then ' where d.unity_running is false and d.status in (''online'', ''late'', ''clock_skewed'')'
    when p_status is not null then ' where d.status = $1'
    else ' where true'
  end;
begin
  if p_status = 'revoked' then
    return query execute
      'select r.* '
      'from fleet.devices d '
      'left join fleet.device_last_status ls using (device_id) '
      'left join fleet.cohorts c on c.cohort = d.cohort '
      -- By name, so that a field that is added later needs no change here.
      'cross join lateral jsonb_populate_record(null::fleet.device_status, coalesce(to_jsonb(ls), ''{}'') || jsonb_build_object('
      '  ''device_id'', d.device_id, ''alias'', d.alias, ''cohort'', d.cohort, ''status'', $1, ''enrolled_at'', d.enrolled_at,'
      '  ''seconds_since'', extract(epoch from now() - ls.last_received_at)::bigint,'
      '  ''heartbeat_interval'', greatest(d.heartbeat_interval, c.min_interval))) r '
      'where d.revoked_at is not null and d.device_id > $3 and ($2 is null or ls.last_received_at < now() - $2)'
      || case when p_cohort is not null then ' and d.cohort = $5' else '' end
      || case when p_alias is not null then ' and d.alias = $6' else '' end
      || ' order by d.device_id limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;
  if p_older_than is not null then
    v_filter := v_filter || ' and d.last_received_at < now() - $2';
    v_where := ' and ls.last_received_at < now() - $2';
  end if;
  if p_alias is not null then
    -- At most one device.
    return query execute
      'select d.* from fleet.device_status d' || v_filter || ' and d.device_id > $3 and d.alias = $6'
      || case when p_cohort is not null then ' and d.cohort = $5' else '' end || ' limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;

  -- No device is expected more often than v_shortest or less often than v_longest; see fleet.expected_interval().
  if p_status in ('online', 'late') then
    select min(d.heartbeat_interval), greatest(
      max(d.heartbeat_interval), (select max(greatest(c.min_interval, c.last_interval)) from fleet.cohorts c)
    )
    into v_shortest, v_longest
    from fleet.devices d;
  end if;
  v_where := v_where || case p_status
    when 'new' then ' and ls.status is null and ls.last_received_at is null'
    -- The shorter the interval, the longer is what fleet.excused() allows.
    when 'online' then ' and ls.status is distinct from ''clock_skewed'''
      ' and now() - ls.last_received_at - fleet.excused(ls.next_in_s, $7) <= fleet.late_after($8)'
    when 'late' then ' and ls.status is distinct from ''clock_skewed'''
      ' and now() - ls.last_received_at - fleet.excused(ls.next_in_s, $8) > fleet.late_after($7)'
      ' and now() - ls.last_received_at - fleet.excused(ls.next_in_s, $7)'
      ' <= greatest((select s.offline_after from fleet.settings s), 2 * $8)'
    -- Nobody is offline before the time for which it announced its next heartbeat.
    when 'offline' then
      ' and now() - ls.last_received_at'
      ' > greatest((select s.offline_after from fleet.settings s), ls.next_in_s * interval ''1 second'')'
    when 'clock_skewed' then ' and ls.status = ''clock_skewed'''
    when 'unity_down' then ' and ls.status <> ''ok'' and ls.unity_running is false'
    else ''
  end;

  if p_cohort is not null and (
    select count(*) from (select from fleet.devices d where d.cohort = p_cohort limit c_small_cohort) f
  ) < c_small_cohort then
    v_found := 'select d.device_id from fleet.devices d where d.cohort = $5 and d.device_id > $3';
    if v_where <> '' then
      v_found := 'select f.device_id from (' || v_found || ' order by d.device_id offset 0) f cross join lateral ('
        'select from fleet.device_last_status ls where ls.device_id = f.device_id' || v_where || ' offset 0) ls';
    end if;
  else
    if v_where = '' then
      v_found := 'select d.device_id from fleet.devices d where d.device_id > $3'
        || case when p_cohort is not null then ' and d.cohort = $5' else '' end;
    else
      v_found := 'select ls.device_id from fleet.device_last_status ls where ls.device_id > $3' || v_where;
      if p_status in ('new', 'clock_skewed', 'unity_down') then
        null;  -- these have an index
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
      end if;
      if p_cohort is not null then
        v_found := 'select f.device_id from (' || v_found || ' order by 1 offset 0) f cross join lateral ('
          'select from fleet.devices c where c.device_id = f.device_id and c.cohort = $5 offset 0) c';
      end if;
    end if;
  end if;

  -- OFFSET 0 keeps the planner from joining the whole fleet to a few devices: it cannot guess how many have a status.
  return query execute 'select d.* from (' || v_found || ') found cross join lateral ('
    'select s.* from fleet.device_status s where s.device_id = found.device_id offset 0) d'
    || v_filter || ' order by found.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias, v_shortest, v_longest;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer, text, text) is
  'A page of fleet.device_status in order of device_id, after a given device_id. Filters by status, by time since it was '
  'heard from, by cohort and by alias. Two more statuses can be asked for: unity_down (the devices of fleet.unity_down), and '
  'revoked (devices whose token was revoked, which fleet.device_status leaves out). '
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
  (
    select d.*
    from fleet.device_status_legacy d
    where d.device_id > p_after
      and (
        p_status is null or d.status = p_status
        or p_status = 'unity_down' and d.unity_running is false and d.status in ('online', 'late', 'clock_skewed')
      )
      and (p_older_than is null or d.last_received_at < now() - p_older_than)
      and (p_cohort is null or d.cohort = p_cohort)
      and (p_alias is null or d.alias = p_alias)
    order by d.device_id
    limit p_limit
  )
  union all
  -- The view leaves revoked devices out.
  select d.*
  from fleet.list_devices(p_status, p_older_than, p_after, p_limit, p_cohort, p_alias) d
  where p_status = 'revoked'
  order by device_id;
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer, text, text) is
  'The same as fleet.list_devices(), over fleet.device_status_legacy. '
  'Example: select alias from fleet.list_devices_legacy(''offline'', ''12 minutes'');';
--! EndIncluded status/list_devices_legacy.sql
--! Included status/describe_clock.sql
create or replace function fleet.describe_clock(p_device_id bigint) returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
begin
  return (
    with bounds as (
      select now() - least(s.max_late, s.retention) - interval '1 day' as oldest, now() + s.max_future as newest
      from fleet.settings s
    ),
    arrived as (
      (
        select h.ts, h.received_at
        from fleet.device_heartbeats h
        where h.device_id = p_device_id
          and h.ts >= (select b.oldest from bounds b) and h.ts <= (select b.newest from bounds b)
          and h.received_at <= (select b.newest from bounds b)
        order by h.received_at desc, h.ts desc
        limit 1
      )
      union all
      (
        select q.ts, q.received_at
        from fleet.heartbeat_quarantine q
        where q.device_id = p_device_id and isfinite(q.ts) and q.received_at <= (select b.newest from bounds b)
        order by q.received_at desc, q.ts desc
        limit 1
      )
    )
    select case when m.minutes < 0 then format('lags by %s', t.text) else format('is %s ahead', t.text) end
    from (
      select round(extract(epoch from a.ts - a.received_at) / 60) as minutes
      from arrived a
      order by a.received_at desc, a.ts desc
      limit 1
    ) m
    cross join lateral (
      select case
        when abs(m.minutes) < 120 then format('%s min', abs(m.minutes))
        when abs(m.minutes) < 2880 then format('%s h', round(abs(m.minutes) / 60))
        else format('%s days', round(abs(m.minutes) / 1440))
      end as text
    ) t
    where abs(m.minutes) > 1
  );
end
$$;

comment on function fleet.describe_clock(bigint) is
  'How wrong the clock of a device is, such as "lags by 6 h" or "is 2 h ahead", by the heartbeat that arrived last of those that '
  'were stored or quarantined; null if it is off by a minute or less. '
  'Example: select alias, fleet.describe_clock(device_id) from fleet.list_devices(''clock_skewed'');';
--! EndIncluded status/describe_clock.sql
--! Included availability/missed_beats.view.sql
create or replace view fleet.missed_beats with (security_invoker = true) as
select h.device_id, h.alias, h.cohort, h.status, h.last_ts, h.last_received_at as heard_at,
  h.expected_interval as heartbeat_interval, m.missed_beats
from fleet.device_state h
cross join lateral (
  select fleet.beats_missed(
    now() - coalesce(h.last_received_at, h.enrolled_at) - fleet.excused(h.next_in_s, h.expected_interval), h.expected_interval
  ) as missed_beats
) m
-- The first condition is cheap, and leaves few rows for the second.
where now() - coalesce(h.last_received_at, h.enrolled_at) - fleet.excused(h.next_in_s, h.expected_interval)
  >= 1.5 * h.expected_interval
  and m.missed_beats > 0
order by m.missed_beats desc, h.device_id;

comment on view fleet.missed_beats is
  'Devices with missing heartbeats: how many each has missed in a row until now, since its last heartbeat, or since it was '
  'enrolled if it never sent one. Until the time for which a device announced its next heartbeat it misses none. Most first. '
  'Example: select alias, missed_beats from fleet.missed_beats where missed_beats >= 10;';
--! EndIncluded availability/missed_beats.view.sql
--! Included status/counts_hold.sql
create or replace function fleet.counts_hold(p_now timestamptz default now()) returns boolean
language sql
stable
parallel safe
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The job counts once a minute. One run may be missed, and each takes some seconds. All rows are of the same time.
  select coalesce(k.counted_at <= n.moment and n.moment - k.counted_at < interval '150 seconds', false)
  from fleet.not_in_future(p_now) n (moment)
  left join fleet.fleet_counts k on k.place = 1;
$$;

comment on function fleet.counts_hold(timestamptz) is
  'Whether fleet.fleet_counts is recent enough to be used at this time. If false, devices are counted when somebody asks. See '
  'fleet.count_fleet(). Example: select fleet.counts_hold();';
--! EndIncluded status/counts_hold.sql
--! Included status/may_be_ahead.sql
create or replace function fleet.may_be_ahead(p_now timestamptz default now()) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select not fleet.counts_hold(p_now) or exists (select from fleet.fleet_counts k where k.place = 1 and k.ahead > 0);
$$;

comment on function fleet.may_be_ahead(timestamptz) is
  'False if the counts of fleet.count_fleet() hold and say that no device was last heard from in the future, which happens after '
  'the clock of Postgres ran ahead. If true, look at the devices. Example: select fleet.may_be_ahead();';
--! EndIncluded status/may_be_ahead.sql
--! Included status/fleet_summary.view.sql
-- Only one of the two halves runs: the choice is made once, before the first row, and above the subquery, so that no parallel
-- workers are started for nothing. The kept counts are of the whole fleet, so a login that sees only some cohorts counts its own.
-- Devices are counted by status first, so that each device's status is derived once.
create or replace view fleet.fleet_summary with (security_invoker = true) as
select d.cohort, d.devices, d.online, d.late, d.offline, d.new, d.clock_skewed, d.unity_down, d.counted_at
from (
  select k.place, k.cohort, k.devices, k.online, k.late, k.offline, k.new, k.clock_skewed, k.unity_down, k.counted_at
  from fleet.fleet_counts k
  where fleet.seen_cohorts() is null and fleet.counts_hold()
  union all
  select s.place, s.cohort, s.devices, s.online, s.late, s.offline, s.new, s.clock_skewed, s.unity_down, now()
  from (
    select row_number() over (order by grouping(c.cohort) desc, c.cohort) as place,
      coalesce(c.cohort, '(all)') as cohort,
      coalesce(sum(c.devices), 0)::bigint as devices,
      coalesce(sum(c.devices) filter (where c.status = 'online'), 0)::bigint as online,
      coalesce(sum(c.devices) filter (where c.status = 'late'), 0)::bigint as late,
      coalesce(sum(c.devices) filter (where c.status = 'offline'), 0)::bigint as offline,
      coalesce(sum(c.devices) filter (where c.status = 'new'), 0)::bigint as new,
      coalesce(sum(c.devices) filter (where c.status = 'clock_skewed'), 0)::bigint as clock_skewed,
      coalesce(sum(c.devices) filter (where c.is_unity_down and c.status in ('online', 'late', 'clock_skewed')), 0)::bigint
        as unity_down
    from (
      select v.cohort, v.status, v.unity_running is false as is_unity_down, count(*) as devices
      from fleet.device_status v
      group by v.cohort, v.status, v.unity_running is false
    ) c
    group by grouping sets ((c.cohort), ())
  ) s
  where not (fleet.seen_cohorts() is null and fleet.counts_hold())
) d
order by d.place;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. In a large fleet they are counted once a minute, at '
  'counted_at (fleet.count_fleet()). For a login of fleet.create_reader(), (all) is all that it sees. '
  'Example: select * from fleet.fleet_summary;';
--! EndIncluded status/fleet_summary.view.sql
--! Included status/sample_fleet.sql
create or replace function fleet.sample_fleet() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_at timestamptz := date_bin('10 minutes', now(), '2000-01-01Z');
  v_fleet record;
begin
  delete from fleet.fleet_samples s
  where s.sampled_at < now() - interval '8 days' or s.sampled_at > now();
  -- Nine times out of ten the row is already there, and no device is counted.
  if not exists (select from fleet.fleet_samples s where s.sampled_at = v_at) then
    select f.* into v_fleet from fleet.fleet_summary f where f.cohort = '(all)';
    insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
    values (
      v_at, v_fleet.devices, v_fleet.online, v_fleet.late, v_fleet.offline, v_fleet.new, v_fleet.clock_skewed, v_fleet.unity_down
    )
    on conflict do nothing;
  end if;
end
$$;

comment on function fleet.sample_fleet() is
  'Stores the counts of fleet.fleet_summary once every 10 minutes, for fleet.fleet_trend. Called every minute by '
  'fleet.mark_silent(). '
  'Example: select fleet.sample_fleet();';
--! EndIncluded status/sample_fleet.sql
--! Included silence/newest_received_at.sql
create or replace function fleet.newest_received_at(p_now timestamptz) returns timestamptz
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
begin
  return (
    select coalesce(
      (
        select k.newest_received_at
        from fleet.fleet_counts k
        cross join fleet.settings s
        where k.place = 1 and fleet.counts_hold(p_now) and p_now - k.newest_received_at <= s.ingest_gap
      ),
      (
        select max(ls.last_received_at)
        from fleet.device_last_status ls
        -- It may have arrived after this transaction began. In a subquery, the clock is read once and not for each device.
        where ls.last_received_at <= (select greatest(p_now, clock_timestamp()))
      )
    )
  );
end
$$;

comment on function fleet.newest_received_at(timestamptz) is
  'When the newest heartbeat before this time arrived. In a large fleet it is taken from fleet.fleet_counts if it shows that '
  'ingest is not down; then a newer one may have arrived since. Example: select fleet.newest_received_at(now());';
--! EndIncluded silence/newest_received_at.sql
--! Included silence/silence_window_start.sql
create or replace function fleet.silence_window_start(p_now timestamptz) returns timestamptz
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  -- Devices that fell silent while ingest was down have not been counted yet, so the window includes the gap once more.
  select least(case when p_now < w.gap_to + 2 * s.silence_window then w.gap_from end, p_now - s.silence_window)
  from fleet.settings s
  cross join fleet.silence_watch w;
$$;

comment on function fleet.silence_window_start(timestamptz) is
  'When the window begins in which fleet.fleet_silence counts devices at this time: settings.silence_window ago, or earlier '
  'after a gap in ingest. Example: select fleet.silence_window_start(now());';
--! EndIncluded silence/silence_window_start.sql
--! Included silence/silence_at.sql
create or replace function fleet.silence_at(p_now timestamptz)
returns table (
  cohort text, devices bigint, active bigint, gone_quiet bigint, share double precision, usual_share double precision,
  ratio double precision, is_alarming boolean, is_muted boolean, muted_reason text, window_start timestamptz,
  counted_at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  -- Before the statement: a function that reads distributed tables cannot be called in one that reads others of Citus.
  v_is_down boolean := fleet.is_ingest_down(fleet.newest_received_at(p_now), fleet.not_in_future(p_now));
begin
  return query
    with ingest as materialized (
      select
        case
          when v_is_down then 'ingest_down'
          when p_now < w.gap_to + s.silence_window or w.gap_from is not null and w.gap_to is null
            or fleet.postgres_started_at() > w.looked_at then 'ingest_resumed'
          when w.looked_at < p_now - s.ingest_gap then 'unwatched'
        end as muted_reason,
        coalesce(k.window_start, fleet.silence_window_start(p_now)) as window_start,
        coalesce(k.counted_at, p_now) as counted_at
      from fleet.settings s
      cross join fleet.silence_watch w
      left join fleet.fleet_counts k on k.place = 1 and fleet.counts_hold(p_now)
    ),
    -- How long each device is overdue. OFFSET 0 has it computed once.
    heard as (
      select d.cohort,
        p_now - ls.last_received_at - fleet.excused(ls.next_in_s, i.expected) - fleet.late_after(i.expected) as overdue
      from fleet.devices d
      left join fleet.device_last_status ls using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      cross join lateral (
        select fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
      ) i
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
      select row_number() over (order by grouping(k.cohort) desc, k.cohort) as place, coalesce(k.cohort, '(all)') as cohort,
        coalesce(sum(k.devices), 0)::bigint as devices, coalesce(sum(k.active), 0)::bigint as active,
        coalesce(sum(k.gone_quiet), 0)::bigint as gone_quiet
      from counted k
      group by grouping sets ((k.cohort), ())
    ),
    -- Only one of the two halves runs.
    listed as (
      select k.place, k.cohort, k.devices, k.active, k.gone_quiet
      from fleet.fleet_counts k
      where fleet.counts_hold(p_now)
      union all
      select s.place, s.cohort, s.devices, s.active, s.gone_quiet
      from summed s
      where not fleet.counts_hold(p_now)
    )
    select m.cohort, m.devices, m.active, m.gone_quiet, r.share, u.usual_share, r.share / nullif(u.usual_share, 0),
      r.muted_reason is null and m.gone_quiet >= s.silence_min_devices and r.share >= s.silence_share
        and r.share >= s.silence_ratio * u.usual_share,
      r.muted_reason is not null, r.muted_reason, i.window_start, i.counted_at
    from listed m
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
    -- A login of fleet.create_reader() sees its cohorts, and not what is true of the whole fleet.
    where (select fleet.seen_cohorts()) is null or m.cohort = any ((select fleet.seen_cohorts())::text[])
    order by m.place;
end
$$;

comment on function fleet.silence_at(timestamptz) is
  'fleet.fleet_silence at a given time, from what is known now. Defined in docs/decisions/0017. Uses the counts of '
  'fleet.count_fleet() if they hold. Example: select * from fleet.silence_at(now());';
--! EndIncluded silence/silence_at.sql
--! Included silence/fleet_silence.view.sql
create or replace view fleet.fleet_silence as
select s.cohort, s.devices, s.active, s.gone_quiet, s.share, s.usual_share, s.ratio, s.is_alarming, s.is_muted, s.muted_reason,
  s.window_start, s.counted_at
from fleet.silence_at(now()) s;

comment on view fleet.fleet_silence is
  'For the whole fleet (all) and for each cohort: devices on the roster, devices active in the window (since window_start), '
  'active devices that have gone quiet in it, their share, the usual share at this time of day, and whether this is an alarm. '
  'While the alarm cannot be evaluated, muted_reason says why: ingest_down, ingest_resumed, unwatched, few_devices or '
  'few_samples. The devices of a large fleet are counted once a minute, at counted_at. '
  'Example: select * from fleet.fleet_silence where is_alarming;';
--! EndIncluded silence/fleet_silence.view.sql
--! Included silence/silence_metrics.sql
create or replace function fleet.silence_metrics()
returns table (metric text, labels jsonb, value double precision)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    select v.metric, s.labels, v.value
    from (
      -- OFFSET 0 has the labels of a cohort made once, and not for each metric.
      select l.*, jsonb_build_object('cohort', l.cohort) as labels from fleet.fleet_silence l offset 0
    ) s
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
end
$$;

comment on function fleet.silence_metrics() is
  'fleet.fleet_silence for /metrics. Separate from fleet.metric_values(), because it reads every device of a small fleet; a '
  'server calls it once a minute.';
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
  v_newest := fleet.newest_received_at(p_now);

  -- While the devices of a gap are still to be counted, a further gap extends it rather than replacing it.
  v_is_remembered := v_watch.gap_to is null and v_watch.gap_from is not null
    or p_now < v_watch.gap_to + 2 * v_settings.silence_window;
  if v_watch.looked_at > p_now + v_settings.ingest_gap then
    -- The clock ran ahead, so nothing that was seen then counts.
    v_watch.gap_from := coalesce(v_newest, p_now);
    v_watch.gap_to := p_now;
    v_watch.sampled_at := '-infinity';
    delete from fleet.silence_samples s
    where s.sampled_at > p_now;
  elsif fleet.is_ingest_down(v_newest, p_now) then
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else v_newest end;
    v_watch.gap_to := null;
  elsif v_watch.gap_from is not null and v_watch.gap_to is null then
    v_watch.gap_to := p_now;
  elsif v_watch.looked_at < p_now - v_settings.ingest_gap or v_watch.looked_at < fleet.postgres_started_at() then
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
    and a.window_start = a.counted_at - v_settings.silence_window
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
--! Included status/count_fleet.sql
-- A smaller fleet is counted in less than 50 ms when somebody asks, to the second.
create or replace function fleet.count_fleet(p_least integer default 50000) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_window_start timestamptz;
  v_bound timestamptz;
begin
  if (
    select count(*) from (select from fleet.devices d where d.revoked_at is null limit p_least) f
  ) < p_least then
    delete from fleet.fleet_counts;
    return;
  end if;

  select fleet.silence_window_start(now()), now() + s.max_future into v_window_start, v_bound from fleet.settings s;
  with counted as (
    select d.cohort, count(*) as devices,
      count(*) filter (where d.status = 'online') as online,
      count(*) filter (where d.status = 'late') as late,
      count(*) filter (where d.status = 'offline') as offline,
      count(*) filter (where d.status = 'new') as new,
      count(*) filter (where d.status = 'clock_skewed') as clock_skewed,
      count(*) filter (where d.is_unity_down and d.status in ('online', 'late', 'clock_skewed')) as unity_down,
      count(*) filter (where d.overdue <= now() - v_window_start) as active,
      count(*) filter (where d.overdue > interval '0' and d.overdue <= now() - v_window_start) as gone_quiet,
      max(d.last_received_at) filter (where d.last_received_at <= now()) as newest_received_at,
      count(*) filter (where d.newest > v_bound) as ahead
    from (
      -- OFFSET 0 has the status and the silence of a device computed once.
      select s.cohort, s.status, s.unity_running is false as is_unity_down, s.last_received_at,
        now() - s.last_received_at - fleet.excused(s.next_in_s, s.expected_interval) - fleet.late_after(s.expected_interval)
          as overdue,
        greatest(s.last_ts, s.last_received_at) as newest
      from fleet.device_state s
      offset 0
    ) d
    group by d.cohort
  )
  -- In order, so that two runs at the same time wait for each other. Rows are updated in place (HOT), because every row changes
  -- each minute.
  insert into fleet.fleet_counts as k (
    place, cohort, counted_at, devices, online, late, offline, new, clock_skewed, unity_down, window_start, active, gone_quiet,
    newest_received_at, ahead
  )
  select row_number() over (order by grouping(c.cohort) desc, c.cohort) as place, coalesce(c.cohort, '(all)'), now(),
    sum(c.devices), sum(c.online), sum(c.late), sum(c.offline), sum(c.new), sum(c.clock_skewed), sum(c.unity_down),
    v_window_start, sum(c.active), sum(c.gone_quiet), max(c.newest_received_at), sum(c.ahead)
  from counted c
  group by grouping sets ((c.cohort), ())
  order by place
  on conflict on constraint fleet_counts_pkey do update
    set cohort = excluded.cohort, counted_at = excluded.counted_at, devices = excluded.devices, online = excluded.online,
      late = excluded.late, offline = excluded.offline, new = excluded.new, clock_skewed = excluded.clock_skewed,
      unity_down = excluded.unity_down, window_start = excluded.window_start, active = excluded.active,
      gone_quiet = excluded.gone_quiet, newest_received_at = excluded.newest_received_at, ahead = excluded.ahead;
  delete from fleet.fleet_counts k
  where k.counted_at <> now();
end
$$;

comment on function fleet.count_fleet(integer) is
  'Counts a large fleet once, for all who read fleet.fleet_summary and fleet.fleet_silence until the next run. With fewer '
  'enrolled devices than p_least nothing is kept. Called each minute by fleet.mark_silent(). If it does not run, the views are '
  'still right, but slower. Example: select fleet.count_fleet();';
--! EndIncluded status/count_fleet.sql
--! Included status/mark_silent.sql
-- Devices become silent because time passes, so no heartbeat can mark them. They are marked early, at three quarters of the time
-- after which they are offline, so that between two runs no device is offline without the mark. Queries that use the mark
-- always compare with the clock again.
create or replace procedure fleet.mark_silent(p_max_rows integer default 50000, p_now timestamptz default now())
language plpgsql
as $$
declare
  c_batch constant integer := 5000;
  c_noted constant integer := 1000;
  v_base interval;
  v_changes bigint;
  v_rows integer;
  v_left integer := p_max_rows;
  v_ids bigint[];
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
      where not l.is_silent and l.last_received_at < p_now - v_base * 0.75
        and l.last_received_at < p_now - 1.5 * (select d.heartbeat_interval from fleet.devices d where d.device_id = l.device_id)
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
      where l.is_silent and (l.last_received_at is null or l.last_received_at >= p_now - interval '2 minutes')
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

  -- After the marks and the look at ingest, which explain why devices went offline.
  while fleet.note_changed_devices(c_noted, p_now) = c_noted loop
    commit;
  end loop;
  commit;
  v_ids := fleet.devices_to_note(p_now);
  perform fleet.find_incidents(v_ids, p_now);
  commit;
  for v_first in 1..coalesce(cardinality(v_ids), 0) by c_noted loop
    perform set_config('lock_timeout', '1s', true);
    perform fleet.note_first_status(v_ids[v_first : v_first + c_noted - 1], p_now);
    perform fleet.note_transitions(v_ids[v_first : v_first + c_noted - 1], p_now);
    commit;
  end loop;
  perform fleet.end_incidents(p_now);
  perform fleet.remind_webhooks(p_now);
  perform fleet.wake_notifier();
  commit;

  perform fleet.count_fleet();
  commit;

  perform fleet.sample_fleet();
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'Sets device_last_status.is_silent for devices that have been silent for three quarters of the time after which they are '
  'offline, so that lists of offline devices need not look at the others. Run every minute by pg_cron. If it does not run, '
  'lists are still right, but slower. Also calls fleet.end_overdue_readers(), fleet.watch_silence(), fleet.note_changed_devices(), '
  'fleet.find_incidents(), fleet.note_transitions(), fleet.end_incidents(), fleet.remind_webhooks(), fleet.count_fleet() and '
  'fleet.sample_fleet(). Example: call fleet.mark_silent();';
--! EndIncluded status/mark_silent.sql
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
  c_clocks constant integer := 3;
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_total bigint;
  v_start bigint;
  v_sample bigint[];
  v_found bigint[];
  v_lost bigint[];  -- enrolled devices without a row of last status
  v_ahead bigint;
  -- As variables, so that the planner locks only these partitions, and does not wait for one that is being settled.
  v_from timestamptz := p_now - interval '1 day';
  v_to timestamptz;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  v_to := p_now + v_settings.max_future;

  check_name := 'triggers';
  -- What the migrations made has to be there; whatever else is disabled on the store's tables is named as well.
  select string_agg(distinct format('%s on %s', f.name, f.relation), ', '),
    concat_ws(
      e'\n',
      case when bool_or(f.is_internal) then '-- as superuser' else '-- as fleet_owner' end,
      string_agg(distinct f.command, e'\n'),
      -- While they were off, last status was not kept, and the guard learned nothing.
      case when bool_or(f.name = 'device_heartbeats_record_last_status') then 'select fleet.backfill_last_status(1);' end,
      case
        when bool_or(f.name = 'hb_partitions_protect') then 'update fleet.hb_partitions set partition_name = partition_name;'
      end
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
  v_sample := array(select s.device_id from fleet.devices s where s.device_id > v_start order by s.device_id limit c_sample);
  -- One statement stores a heartbeat and updates last status, so any difference is drift.
  select count(*) filter (where ls.last_ts is null or ls.last_ts < h.ts), count(*) into v_count, v_total
  from fleet.device_last_status ls
  cross join lateral (
    select b.ts
    from fleet.device_heartbeats b
    where b.device_id = ls.device_id and b.ts >= v_from and b.ts <= v_to
    order by b.ts desc
    limit 1
  ) h
  where ls.device_id = any (v_sample);
  v_found := array(select ls.device_id from fleet.device_last_status ls where ls.device_id = any (v_sample));
  v_lost := array(select u.device_id from unnest(v_sample) as u (device_id) where u.device_id <> all (v_found));
  if cardinality(v_lost) > 0 then
    select v_count + count(distinct b.device_id), v_total + count(distinct b.device_id) into v_count, v_total
    from fleet.device_heartbeats b
    where b.device_id = any (v_lost) and b.ts >= v_from and b.ts <= v_to;
  end if;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := format('last status is behind the newest heartbeat for %s of %s devices in the sample', v_count, v_total);
  v_ahead := 0;
  if fleet.may_be_ahead(p_now) then
    select count(*), min(ls.device_id) into v_ahead, v_start
    from fleet.device_last_status ls
    where greatest(ls.last_ts, ls.last_received_at) > v_to;
  end if;
  if v_ahead > 0 then
    status := 'warn';
    detail := format(
      '%s; %s devices were last heard from in the future, such as device %s, because the clock of Postgres ran ahead',
      detail, v_ahead, v_start
    );
  end if;
  remedy := case when status <> 'ok' then 'select fleet.backfill_last_status(1);' end;
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
    where q.received_at > p_now - interval '1 hour' and q.received_at <= greatest(p_now, clock_timestamp())
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
  v_sample := array(select ls.device_id from fleet.device_last_status ls where ls.status = 'clock_skewed' limit 1000)
    || array(select distinct q.device_id from fleet.heartbeat_quarantine q where q.received_at > p_now - interval '1 hour');
  select count(*), string_agg(f.device_id::text, ', ' order by f.device_id) filter (where f.nth <= 10) into v_count, v_names
  from (
    select q.device_id, row_number() over (order by q.device_id) as nth
    from fleet.heartbeat_quarantine q
    where q.device_id = any (v_sample)
    group by q.device_id
    having count(*) >= v_settings.quarantine_per_device
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
  select f.clock_skewed, f.devices into v_count, v_total
  from fleet.fleet_summary f
  where f.cohort = '(all)';
  select string_agg(format('%s %s', coalesce(d.alias, 'device ' || d.device_id), d.clock), ', ' order by d.device_id)
  into v_names
  from (
    select s.device_id, s.alias, coalesce(fleet.describe_clock(s.device_id), 'was wrong') as clock
    from fleet.list_devices('clock_skewed', p_limit => c_clocks) s
  ) d;
  status := case when v_count > 0 and v_count * 100 >= v_total then 'warn' else 'ok' end;
  detail := format('the clocks of %s of %s devices are wrong%s', v_count, v_total, ': ' || v_names)
    || case when v_count > c_clocks then ', …' else '' end;
  remedy := case
    when status <> 'ok' then e'-- set the clocks of these devices; the next heartbeat of each clears this'
      '\nselect device_id, alias, cohort, fleet.describe_clock(device_id) as clock, last_received_at '
      'from fleet.list_devices(''clock_skewed'', p_limit => 50);'
  end;
  return next;
end
$$;

comment on function fleet.check_ingest(timestamptz) is
  'The part of fleet.check() about heartbeats: triggers, last status (of a sample of devices), quarantine and clocks.';
--! EndIncluded checks/check_ingest.sql
--! Included checks/check_fields.sql
create or replace function fleet.check_fields(p_now timestamptz default now())
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
  c_named constant integer := 10;
  v_devices bigint;
  v_refused bigint;
  v_fields text;
  v_names text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'unreadable_fields';
  with recent as (
    select f.*
    from fleet.device_unreadable_fields f
    where f.last_at > p_now - interval '1 hour'
  )
  select count(distinct r.device_id), count(distinct r.device_id) filter (where r.field in ('ts', 'device_id', 'body')),
    (
      select string_agg(
        format('%s of %s devices (device %s sent %s)', g.field, g.devices, g.device_id, g.example), ', ' order by g.devices desc, g.field
      )
      from (
        select s.field, count(*) as devices, (array_agg(s.device_id order by s.last_at desc, s.device_id))[1] as device_id,
          (array_agg(s.example order by s.last_at desc, s.device_id))[1] as example
        from recent s
        group by s.field
      ) g
    )
  into v_devices, v_refused, v_fields
  from recent r;
  -- One odd device among many is no trouble of the fleet. A heartbeat that is refused is lost, so that is always said.
  status := case
    when v_refused > 0 or v_devices > 0
      and v_devices * 100 >= (select f.devices from fleet.fleet_summary f where f.cohort = '(all)' limit 1)
      then 'warn'
    else 'ok'
  end;
  detail := case
    when v_devices = 0 then 'every field that devices sent in the last hour could be read'
    else 'in the last hour these could not be read: ' || v_fields
  end;
  remedy := case
    when status <> 'ok' then
      e'-- correct what the agents send; an hour later this is clear. ts, device_id and body: the whole heartbeat was refused'
      '\nselect * from fleet.unreadable_fields where last_at > now() - interval ''1 hour'' order by last_at desc limit 50;'
  end;
  return next;

  check_name := 'slowed_devices';
  -- No join: the fleet may be large, and only the devices that are named are looked up.
  select count(*), sum(f.times),
    string_agg(
      format(
        'device %s (%s): %s since %s', f.device_id,
        (select d.alias from fleet.devices d where d.device_id = f.device_id), f.times, to_char(f.first_at, 'HH24:MI "UTC"')
      ),
      '; ' order by f.nth
    ) filter (where f.nth <= c_named)
  into v_devices, v_refused, v_names
  from (
    select s.device_id, sum(s.times) as times, min(s.first_at) as first_at,
      row_number() over (order by sum(s.times) desc, s.device_id) as nth
    from fleet.device_slowdowns s
    where s.last_at > p_now - interval '1 hour'
    group by s.device_id
  ) f;
  status := case when v_devices = 0 then 'ok' else 'warn' end;
  detail := case
    when v_devices = 0 then 'no device sent more requests in the last hour than the servers accept'
    else format(
      '%s devices sent more requests in the last hour than the servers accept. Refused (429) were %s requests: %s%s',
      v_devices, v_refused, v_names, case when v_devices > c_named then '; …' end
    )
  end;
  remedy := case
    when status <> 'ok' then
      e'-- fix what their agents do; an hour after the last refused request this is clear. Nothing is lost, and others are not slowed'
      '\nselect * from fleet.slowed_devices where last_at > now() - interval ''1 hour'' order by times desc limit 50;'
  end;
  return next;
end
$$;

comment on function fleet.check_fields(timestamptz) is
  'The part of fleet.check() about what agents send: fields that could not be read, heartbeats that were refused because of them, '
  'and devices that send more requests than the servers accept.';
--! EndIncluded checks/check_fields.sql
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
  v_ahead bigint;
  v_names text;
  v_commands text;
  v_is_fleet boolean;
  v_muted text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'heartbeats';
  v_newest := fleet.newest_received_at(p_now);
  v_ahead := 0;
  if fleet.may_be_ahead(p_now) then
    select count(*) into v_ahead
    from fleet.device_last_status ls
    where ls.last_received_at > (select p_now + s.max_future from fleet.settings s);
  end if;
  status := 'ok'; remedy := null;
  detail := coalesce(
    case when fleet.counts_hold(p_now) then 'one' else 'the last one' end
      || ' arrived ' || date_trunc('second', p_now - v_newest) || ' ago',
    'no heartbeat has arrived yet'
  );
  if v_ahead > 0 then
    detail := format(
      '%s; the clock of Postgres ran ahead: %s devices seem to have been heard from in the future',
      case when v_newest is null then 'when the last one arrived is unknown' else detail end, v_ahead
    );
    status := case when v_newest is null then 'warn' else 'ok' end;
    remedy := case when v_newest is null then 'select fleet.backfill_last_status(1);' end;
  end if;
  if fleet.is_ingest_down(v_newest, p_now) then
    status := 'fail';
    detail := format(
      'no device was heard from for %s; unless all are switched off, the cause is the servers, the proxy in front of them, or the '
      'network',
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
    -- Without a tick yet, the jobs are those of pg_cron in another database, of which nothing is known here.
    return query
      select d.jobname, d.schedule, d.max_age, case when exists (select from fleet.ticked_jobs) then true end,
        j.started_at, j.status, j.message, case when j.last_success <= clock_timestamp() then j.last_success end
      from fleet.job_definitions() d
      left join fleet.ticked_jobs j on j.jobname = d.jobname
      where d.jobname <> 'fleet-prune-cron-history' or not exists (select from fleet.ticked_jobs);
    return;
  end if;
  -- A success in the future was written while the clock ran ahead. The history has no index on jobid, so it is read once for all
  -- jobs.
  return query execute $history$
    select d.jobname, d.schedule, d.max_age, j.active, h.start_time, h.status, h.return_message, r.last_success
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user and j.database = current_database()
    left join (
      select o.jobid, max(o.runid) as runid, max(o.start_time)
          filter (where o.status = 'succeeded' and o.start_time <= clock_timestamp()) as last_success
      from cron.job_run_details o
      group by o.jobid
    ) r on r.jobid = j.jobid
    left join cron.job_run_details h on h.runid = r.runid
  $history$;
end
$$;

comment on function fleet.job_history() is
  'Each expected job with its last run and last success by pg_cron or npm run tick; null if neither runs it in this database.';
--! EndIncluded jobs/job_history.sql
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
      cross join lateral (
        select h.start_time
        from cron.job_run_details h
        where h.jobid = j.jobid and h.start_time <= now()  -- a later one was written while the clock ran ahead
        order by h.runid desc
        limit 1
      ) d
      where j.jobname like 'fleet-%' and j.username = current_user and d.start_time is not null
    $jobs$ loop
      v_known := v_known || jobname;
      return next;
    end loop;
  else
    for jobname, age in
      select j.jobname, now() - greatest(j.started_at, fleet.postgres_started_at())
      from fleet.ticked_jobs j
      where j.started_at <= now()
    loop
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
    cross join lateral (select max(e.at) as at from fleet.events e where e.event = w.event and e.at <= now()) l
    where w.jobname <> all (v_known);
end
$$;

comment on function fleet.scheduler_ages() is
  'How long ago each job of the store began, or Postgres started if that was later. If maintain, nightly or reconcile has never '
  'begun, the time since setup. For /metrics.';
--! EndIncluded jobs/scheduler_ages.sql
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
        and e.at <= clock_timestamp()  -- the clock may have run ahead
    )
    -- In a new store the first night is still to come.
    and exists (select from fleet.hb_partitions p where p.created_at <= p_now - interval '25 hours');
end
$$;

comment on function fleet.is_night_missed(timestamptz) is
  'True if fleet.nightly() has not begun for 25 hours. fleet.maintain() then runs it.';
--! EndIncluded jobs/is_night_missed.sql
--! Included webhooks/webhook_events.sql
create or replace function fleet.webhook_events() returns text[]
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select array[
    'late', 'offline', 'clock_skewed', 'unity_down', 'online', 'back', 'revoked', 'cohort_silent', 'network_silent', 'ingest_down'
  ];
$$;

comment on function fleet.webhook_events() is
  'The events that a webhook can ask for: those of fleet.device_transitions, and those of incidents. '
  'Example: select fleet.webhook_events();';
--! EndIncluded webhooks/webhook_events.sql
--! Included webhooks/webhook_origin.sql
create or replace function fleet.webhook_origin(p_url text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(p_url, '^(https?://)(?:[^/?#]*@)?([^/?#@]*).*$', '\1\2');
$$;

comment on function fleet.webhook_origin(text) is 'The scheme, host and port of a URL. The rest of it may be secret. '
  'Example: select fleet.webhook_origin(''https://user:password@example.com:8443/hook'');';
--! EndIncluded webhooks/webhook_origin.sql
--! Included webhooks/describe_webhook.sql
-- Without the path and the user of the URL: with many services, such as Slack, they are the secret.
create or replace function fleet.describe_webhook(p_webhook fleet.webhooks) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(
    ', ',
    (p_webhook).format || ' to ' || fleet.webhook_origin((p_webhook).url),
    array_to_string((p_webhook).events, ' '),
    'cohort ' || (p_webhook).cohort,
    'grace ' || (p_webhook).grace,
    'repeated after ' || (p_webhook).repeat_after,
    case when (p_webhook).paused_at is not null then 'paused' end
  );
$$;

comment on function fleet.describe_webhook(fleet.webhooks) is
  'A webhook in one line, without its secret and without the part of its URL that may be secret. For fleet.audit_log.';
--! EndIncluded webhooks/describe_webhook.sql
--! Included webhooks/audit_webhook.sql
create or replace function fleet.audit_webhook(p_action text, p_name text, p_old text, p_new text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select fleet.audit('webhook.' || p_action, 'webhook:' || p_name, to_jsonb(p_old), to_jsonb(p_new));
$$;

comment on function fleet.audit_webhook(text, text, text, text) is
  'Records in fleet.audit_log what was done to a webhook. Example: '
  'perform fleet.audit_webhook(''paused'', ''on-call'', ''active'', ''paused'');';
--! EndIncluded webhooks/audit_webhook.sql
--! Included webhooks/get_webhook.sql
create or replace function fleet.get_webhook(p_name text) returns fleet.webhooks
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks;
begin
  -- Not FOR UPDATE: the foreign key of each message that ingest queues would wait for it.
  select * into v_webhook from fleet.webhooks where webhook_name = p_name for no key update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no webhook %s', coalesce(p_name, 'null')),
      hint = 'Check the name: select webhook_name from fleet.webhook_health;';
  end if;
  return v_webhook;
end
$$;

comment on function fleet.get_webhook(text) is 'Returns the row of a webhook, locked. Raises an error if there is none of this name.';
--! EndIncluded webhooks/get_webhook.sql
--! Included webhooks/make_webhook_secret.sql
create or replace function fleet.make_webhook_secret() returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  -- As the Standard Webhooks specification writes a secret: 32 random bytes in base64.
  select 'whsec_' || encode(
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64'
  );
$$;

comment on function fleet.make_webhook_secret() is 'Returns a new random secret with which messages are signed.';
--! EndIncluded webhooks/make_webhook_secret.sql
--! Included webhooks/give_up_after.sql
create or replace function fleet.give_up_after() returns interval
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select interval '3 days';
$$;

comment on function fleet.give_up_after() is 'How long a message is tried before it is dead.';
--! EndIncluded webhooks/give_up_after.sql
--! Included webhooks/create_webhook.sql
create or replace function fleet.create_webhook(
  p_name text,
  p_url text,
  p_events text[] default array['offline', 'unity_down', 'cohort_silent', 'network_silent', 'ingest_down'],
  p_cohort text default null,
  p_grace interval default '2 minutes',
  p_repeat_after interval default null,
  p_format text default 'json'
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_example constant text := 'Example: select fleet.create_webhook(''on-call'', ''https://example.com/hooks/fleet'');';
  v_events text[];
  v_unknown text;
  v_webhook fleet.webhooks;
begin
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$' then
    raise exception using
      errcode = 'FL422',
      message = 'name must have 1 to 100 letters, digits, dots, dashes or underscores, and begin with a letter or digit',
      hint = v_example;
  end if;
  -- The rest is judged by the notifier, which knows the addresses behind the name at the time when it connects.
  if p_url is null or p_url !~ '^https?://([^/?#]*@)?[^/?#@:][^/?#@]*([/?#]|$)' or p_url ~ '[^\x21-\x7e]' or strpos(p_url, '\') > 0
    or length(p_url) > 2000 then
    raise exception using
      errcode = 'FL422',
      message = 'url must begin with https:// or http:// and a host, in at most 2000 characters of ASCII without spaces and backslashes',
      hint = v_example;
  end if;
  v_events := array(select distinct e from unnest(p_events) e order by e);
  select string_agg(coalesce(e, 'null'), ', ') into v_unknown
  from unnest(v_events) e
  where e is null or e <> all (fleet.webhook_events());
  if cardinality(v_events) = 0 or v_unknown is not null then
    raise exception using
      errcode = 'FL422',
      message = coalesce('events: unknown: ' || v_unknown, 'events must name at least one event'),
      hint = 'They are: ' || array_to_string(fleet.webhook_events(), ', ') || '.';
  end if;
  if p_cohort is not null and (btrim(p_cohort) = '' or length(p_cohort) > 100) then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters, or be null for the whole fleet',
      hint = v_example;
  end if;
  if p_grace is null or p_grace < interval '0' or p_grace > interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('grace %s is not between 0 and 1 day', coalesce(p_grace::text, 'null')),
      hint = 'A device that is well again within this time is not reported.';
  end if;
  if p_repeat_after < interval '1 minute' or p_repeat_after > interval '30 days' then
    raise exception using
      errcode = 'FL422',
      message = format('repeat_after %s is not between 1 minute and 30 days', p_repeat_after),
      hint = 'With null, nothing is repeated.';
  end if;
  if p_format is null or p_format not in ('json', 'slack', 'teams', 'ntfy', 'alertmanager') then
    raise exception using
      errcode = 'FL422',
      message = format('format must be json, slack, teams, ntfy or alertmanager, not %s', coalesce(p_format, 'null')),
      hint = v_example;
  end if;
  insert into fleet.webhooks (webhook_name, url, format, events, cohort, grace, repeat_after, secret)
  values (p_name, p_url, p_format, v_events, p_cohort, p_grace, p_repeat_after, fleet.make_webhook_secret())
  on conflict (webhook_name) do nothing
  returning * into v_webhook;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('a webhook named %s already exists', p_name),
      hint = format('Choose another name, or remove it first: select fleet.remove_webhook(%L);', p_name);
  end if;
  perform fleet.audit_webhook('created', p_name, null, fleet.describe_webhook(v_webhook));
  return v_webhook.secret;
end
$$;

comment on function fleet.create_webhook(text, text, text[], text, interval, interval, text) is
  'Tells a URL from now on what happens to devices. Returns the secret with which its messages are signed; it is shown only now. '
  'A webhook that asks for offline is told of incidents, too. With p_cohort, only of that cohort. What is over within p_grace is '
  'not reported: an offline device has been silent for settings.offline_after already, but an app that restarts is down for one '
  'heartbeat. p_repeat_after repeats a message while the trouble lasts. p_format: json, slack, teams, ntfy or alertmanager. '
  'Example: select fleet.create_webhook(''on-call'', ''https://example.com/hooks/fleet'', p_repeat_after => ''4 hours'');';
--! EndIncluded webhooks/create_webhook.sql
--! Included webhooks/pause_webhook.sql
create or replace function fleet.pause_webhook(p_name text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
begin
  if v_webhook.paused_at is not null then
    return false;
  end if;
  update fleet.webhooks
  set paused_at = now()
  where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('paused', p_name, 'active', 'paused');
  return true;
end
$$;

comment on function fleet.pause_webhook(text) is
  'Sends nothing to a webhook until fleet.resume_webhook(). Its messages wait. Returns false if it was already paused. '
  'Example: select fleet.pause_webhook(''on-call'');';
--! EndIncluded webhooks/pause_webhook.sql
--! Included webhooks/resume_webhook.sql
create or replace function fleet.resume_webhook(p_name text, p_drop_waiting boolean default false) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_waiting bigint;
begin
  if v_webhook.paused_at is null then
    return 0;
  end if;
  if p_drop_waiting then
    update fleet.webhook_deliveries
    set state = 'dropped', last_error = 'dropped when the webhook was resumed'
    where webhook_id = v_webhook.webhook_id and state = 'pending' and due_at <= now();
  else
    -- The time in which they are tried begins now.
    update fleet.webhook_deliveries
    set due_at = now(), next_attempt_at = now()
    where webhook_id = v_webhook.webhook_id and state = 'pending' and due_at <= now() and lease_owner is null;
  end if;
  get diagnostics v_waiting = row_count;
  update fleet.webhooks
  set paused_at = null, failures = 0, hold_until = null
  where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('resumed', p_name, 'paused', 'active');
  return v_waiting;
end
$$;

comment on function fleet.resume_webhook(text, boolean) is
  'Sends to a paused webhook again, and returns how many messages have waited. They are sent now, or never with p_drop_waiting. '
  'Example: select fleet.resume_webhook(''on-call'');';
--! EndIncluded webhooks/resume_webhook.sql
--! Included webhooks/remove_webhook.sql
create or replace function fleet.remove_webhook(p_name text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_waiting bigint;
begin
  -- Who queues or records messages locks the webhook first, then the messages. So does this, and nobody waits in a circle.
  perform from fleet.webhooks where webhook_id = v_webhook.webhook_id for update;
  select count(*) into v_waiting
  from fleet.webhook_deliveries
  where webhook_id = v_webhook.webhook_id and state = 'pending';
  delete from fleet.webhooks where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('removed', p_name, fleet.describe_webhook(v_webhook), null);
  return v_waiting;
end
$$;

comment on function fleet.remove_webhook(text) is
  'Removes a webhook with all its messages, and returns how many of them were still waiting to be sent. '
  'Example: select fleet.remove_webhook(''on-call'');';
--! EndIncluded webhooks/remove_webhook.sql
--! Included webhooks/rotate_webhook_secret.sql
create or replace function fleet.rotate_webhook_secret(p_name text, p_keep_old interval default '1 day') returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_secret text := fleet.make_webhook_secret();
begin
  if p_keep_old is null or p_keep_old < interval '0' or p_keep_old > interval '30 days' then
    raise exception using
      errcode = 'FL422',
      message = format('keep_old %s is not between 0 and 30 days', coalesce(p_keep_old::text, 'null')),
      hint = 'If the secret leaked: select fleet.rotate_webhook_secret(''on-call'', ''0'');';
  end if;
  update fleet.webhooks
  set secret = v_secret,
    old_secret = case when p_keep_old > interval '0' then v_webhook.secret end,
    old_secret_until = case when p_keep_old > interval '0' then now() + p_keep_old end
  where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('secret_rotated', p_name, 'a secret', format('a new secret; the old one signs too for %s', p_keep_old));
  return v_secret;
end
$$;

comment on function fleet.rotate_webhook_secret(text, interval) is
  'Gives a webhook a new secret and returns it; it is shown only now. For p_keep_old messages are signed with the old one, too, so '
  'that the receiver can change over. Use ''0'' if the old one leaked. Example: select fleet.rotate_webhook_secret(''on-call'');';
--! EndIncluded webhooks/rotate_webhook_secret.sql
--! Included webhooks/test_webhook.sql
create or replace function fleet.test_webhook(p_name text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_id text;
begin
  if v_webhook.paused_at is not null then
    raise exception using
      errcode = 'FL002',
      message = format('webhook %s is paused', p_name),
      hint = format('select fleet.resume_webhook(%L);', p_name);
  end if;
  insert into fleet.webhook_deliveries (webhook_id, event, kind, body, due_at, next_attempt_at)
  values (
    v_webhook.webhook_id, 'test', 'test',
    jsonb_build_object(
      'type', 'test', 'version', 1, 'timestamp', now(), 'data', jsonb_build_object('kind', 'test', 'webhook', p_name)
    ),
    now(), now()
  )
  returning message_id into v_id;
  -- A person waits for it.
  update fleet.webhooks
  set hold_until = null
  where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('tested', p_name, null, 'message ' || v_id);
  perform pg_notify('fleet_notifier', 'test');
  return v_id;
end
$$;

comment on function fleet.test_webhook(text) is
  'Sends a test message and returns its id. What became of it: select state, last_status, last_error from fleet.webhook_deliveries '
  'where message_id = ''…''. Example: select fleet.test_webhook(''on-call'');';
--! EndIncluded webhooks/test_webhook.sql
--! Included webhooks/incident_event.sql
create or replace function fleet.incident_event(p_kind text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case p_kind when 'ingest' then 'ingest_down' else p_kind || '_silent' end;
$$;

comment on function fleet.incident_event(text) is 'The event of webhooks for a kind of fleet.incidents.';
--! EndIncluded webhooks/incident_event.sql
--! Included webhooks/device_message.sql
create or replace function fleet.device_message(
  p_transition fleet.device_transitions, p_alias text, p_event text, p_kind text, p_first_id text default null,
  p_began_at timestamptz default null
) returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'type', 'device.' || p_event,
    'version', 1,
    'timestamp', (p_transition).at,
    'data', jsonb_build_object(
      'kind', p_kind,
      'first_id', p_first_id,
      'event', p_event,
      'device', jsonb_build_object('id', (p_transition).device_id, 'alias', p_alias, 'cohort', (p_transition).cohort),
      'status', (p_transition).status,
      'since', (p_transition).since,
      'previous_status', (p_transition).previous_status,
      'previous_since', (p_transition).previous_since,
      'reason', (p_transition).reason,
      'battery_pct', (p_transition).battery_pct,
      'network_type', (p_transition).network_type,
      'agent_version', (p_transition).agent_version,
      'transition_id', (p_transition).transition_id,
      'began_at', coalesce(p_began_at, (p_transition).since)
    )
  );
$$;

comment on function fleet.device_message(fleet.device_transitions, text, text, text, text, timestamptz) is
  'The body of a message about a device, in version 1 of its schema; see docs/webhooks.md.';
--! EndIncluded webhooks/device_message.sql
--! Included webhooks/incident_message.sql
create or replace function fleet.incident_message(p_incident fleet.incidents, p_kind text, p_first_id text default null) returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'type', 'incident.' || case p_kind when 'recovery' then 'ended' else fleet.incident_event((p_incident).kind) end,
    'version', 1,
    'timestamp', case p_kind when 'recovery' then (p_incident).ended_at else (p_incident).seen_at end,
    'data', jsonb_build_object(
      'kind', p_kind,
      'first_id', p_first_id,
      'event', fleet.incident_event((p_incident).kind),
      'incident_id', (p_incident).incident_id,
      'subject', (p_incident).subject,
      'devices', (p_incident).devices,
      'began_at', (p_incident).began_at,
      'ended_at', (p_incident).ended_at
    )
  );
$$;

comment on function fleet.incident_message(fleet.incidents, text, text) is
  'The body of a message about an incident, in version 1 of its schema; see docs/webhooks.md.';
--! EndIncluded webhooks/incident_message.sql
--! Included webhooks/end_trouble.sql
create or replace function fleet.end_trouble(p_first fleet.webhook_deliveries, p_event text, p_body jsonb, p_at timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Nobody has been told and nobody is being told: the lease is taken together with the attempt.
  v_is_silent constant boolean := (p_first).state = 'pending' and (p_first).attempts = 0 and p_at < (p_first).due_at;
  v_is_dead constant boolean := (p_first).state = 'dead';
begin
  update fleet.webhook_deliveries
  set is_open = false, state = case when v_is_silent then 'dropped' else state end
  where delivery_id = (p_first).delivery_id;
  -- A reminder that was not sent yet says what is no longer true.
  if (p_first).reminders > 0 then
    update fleet.webhook_deliveries
    set state = 'dropped'
    where first_id = (p_first).message_id and kind = 'reminder' and state = 'pending' and attempts = 0;
  end if;
  if v_is_silent or (p_first).state = 'dropped' then
    return 0;
  end if;
  insert into fleet.webhook_deliveries
    (webhook_id, device_id, incident_id, transition_id, event, kind, first_id, body, due_at, next_attempt_at, state, last_error)
  values (
    (p_first).webhook_id, (p_first).device_id, (p_first).incident_id, (p_body #>> '{data,transition_id}')::bigint, p_event,
    'recovery', (p_first).message_id, p_body, p_at, p_at,
    -- Nobody knows of the trouble. But fleet.retry_deliveries() may tell both.
    case when v_is_dead then 'dropped' else 'pending' end, case when v_is_dead then 'its first message is dead' end
  );
  return case when v_is_dead then 0 else 1 end;
end
$$;

comment on function fleet.end_trouble(fleet.webhook_deliveries, text, jsonb, timestamptz) is
  'Ends the trouble that this first message told of, whose row the caller has locked: queues its recovery, or drops the message '
  'if the trouble was over before it was due. Returns how many messages it queued.';
--! EndIncluded webhooks/end_trouble.sql
--! Included webhooks/queue_transition.sql
create or replace function fleet.queue_transition(
  p_transition fleet.device_transitions, p_alias text, p_webhook_id bigint, p_grace interval, p_events text[], p_is_meant boolean,
  p_is_trouble boolean, p_open fleet.webhook_deliveries
) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_at constant timestamptz := (p_transition).at;
  v_event text := (p_transition).event;
  v_due_at timestamptz := v_at + p_grace;
  v_is_open boolean := (p_open).delivery_id is not null;
  v_body jsonb;
begin
  -- Trouble: the device is in a status that the webhook asks for. The incident is told in place of its devices.
  if p_is_trouble and p_is_meant
    and (
      (p_transition).incident_id is null and (p_transition).reason is distinct from 'ingest_down'
      or (p_transition).status not in ('late', 'offline')
    ) then
    v_event := (p_transition).status;
    if v_is_open and (p_open).state = 'pending' and (p_open).attempts = 0 and v_at < (p_open).due_at then
      -- Nobody has heard of the earlier trouble yet, so only the newer one is told, when the earlier one would have been.
      update fleet.webhook_deliveries
      set state = 'dropped', is_open = false
      where delivery_id = (p_open).delivery_id;
      v_due_at := least((p_open).due_at, v_due_at);
      v_is_open := false;
    elsif v_is_open and (p_open).state in ('dead', 'dropped') then
      update fleet.webhook_deliveries
      set is_open = false
      where delivery_id = (p_open).delivery_id;
      v_is_open := false;
    end if;
    if not v_is_open then
      insert into fleet.webhook_deliveries
        (webhook_id, device_id, transition_id, event, kind, is_open, body, due_at, next_attempt_at)
      values (
        p_webhook_id, (p_transition).device_id, (p_transition).transition_id, v_event, 'first', true,
        fleet.device_message(p_transition, p_alias, v_event, 'first'), v_due_at, v_due_at
      )
      on conflict do nothing;
      return case when found then 1 else 0 end;
    end if;
    -- Told already, and something that was not told came in between.
    if v_event = (
      select d.event
      from fleet.webhook_deliveries d
      where d.message_id = (p_open).message_id or d.first_id = (p_open).message_id and d.kind = 'change'
      order by d.delivery_id desc
      limit 1
    ) then
      return 0;
    end if;
    insert into fleet.webhook_deliveries
      (webhook_id, device_id, transition_id, event, kind, first_id, body, due_at, next_attempt_at)
    values (
      p_webhook_id, (p_transition).device_id, (p_transition).transition_id, v_event, 'change', (p_open).message_id,
      fleet.device_message(
        p_transition, p_alias, v_event, 'change', (p_open).message_id, ((p_open).body #>> '{data,began_at}')::timestamptz
      ),
      v_at, v_at
    );
    return 1;
  end if;

  if v_is_open then
    -- While it is silent, nobody knows whether the trouble that was told has ended.
    if (p_transition).status in ('late', 'offline') then
      return 0;
    end if;
    v_body := fleet.device_message(
      p_transition, p_alias, v_event, 'recovery', (p_open).message_id, ((p_open).body #>> '{data,began_at}')::timestamptz
    );
    return fleet.end_trouble(p_open, v_event, v_body, v_at);
  end if;

  -- What is no trouble is told to those who ask for it, but not the end of a trouble that was not told.
  if p_is_meant and v_event in ('online', 'back', 'revoked') and v_event = any (p_events)
    and (v_event = 'revoked' or (p_transition).previous_status <> all (p_events))
    and (v_event = 'revoked' or (p_transition).reason is distinct from 'ingest_down')
    and not (v_event = 'back' and (p_transition).previous_status <> 'revoked' and exists (
      select from (
        select o.incident_id
        from fleet.device_transitions o
        where o.device_id = (p_transition).device_id and o.transition_id < (p_transition).transition_id and o.event = 'offline'
        order by o.transition_id desc
        limit 1
      ) o
      where o.incident_id is not null
    ))
  then
    insert into fleet.webhook_deliveries (webhook_id, device_id, transition_id, event, kind, body, due_at, next_attempt_at)
    values (
      p_webhook_id, (p_transition).device_id, (p_transition).transition_id, v_event, 'first',
      fleet.device_message(p_transition, p_alias, v_event, 'first'), v_at, v_at
    );
    return 1;
  end if;
  return 0;
end
$$;

comment on function fleet.queue_transition(
  fleet.device_transitions, text, bigint, interval, text[], boolean, boolean, fleet.webhook_deliveries
) is
  'Queues what one webhook is told of one change of a device, given the first message of the trouble that lasts, if there is one. '
  'Returns how many messages. Called by fleet.queue_messages().';
--! EndIncluded webhooks/queue_transition.sql
--! Included webhooks/queue_messages.sql
-- Called in the transaction that decided what is told. So a message exists if and only if what it tells of does.
create or replace function fleet.queue_messages(
  p_transition_ids bigint[], p_opened_incidents bigint[], p_closed_incidents bigint[]
) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_queued bigint;
  v_new bigint;
  v_first fleet.webhook_deliveries;
  v_incident fleet.incidents;
  v_transition fleet.device_transitions;
  v_row record;
begin
  -- Before any message is locked: see fleet.remove_webhook().
  perform from fleet.webhooks w order by w.webhook_id for key share;

  -- An incident that a device joins later may be news for the webhook of that device's cohort.
  insert into fleet.webhook_deliveries (webhook_id, incident_id, event, kind, is_open, body, due_at, next_attempt_at)
  select w.webhook_id, i.incident_id, fleet.incident_event(i.kind), 'first', true, fleet.incident_message(i, 'first'),
    i.seen_at + w.grace, i.seen_at + w.grace
  from fleet.incidents i
  -- A device of an incident is not told by itself, so who wants to hear of offline devices hears of the incident.
  join fleet.webhooks w on array[fleet.incident_event(i.kind), 'offline'] && w.events
  where i.ended_at is null
    and i.incident_id in (
      select unnest(p_opened_incidents)
      union
      select t.incident_id
      from fleet.device_transitions t
      where t.transition_id = any (p_transition_ids) and t.status in ('late', 'offline')
    )
    and (
      w.cohort is null or i.kind = 'ingest' or i.kind = 'cohort' and i.subject = w.cohort
      or i.kind = 'network' and exists (
        select from fleet.device_transitions t where t.incident_id = i.incident_id and t.cohort = w.cohort
      )
    )
  order by i.incident_id, w.webhook_id
  on conflict do nothing;
  get diagnostics v_queued = row_count;

  for v_first in
    select d.*
    from fleet.webhook_deliveries d
    where d.incident_id = any (p_closed_incidents) and d.is_open
    order by d.delivery_id
    for update
  loop
    select * into v_incident from fleet.incidents where incident_id = v_first.incident_id;
    v_queued := v_queued + fleet.end_trouble(
      v_first, v_first.event, fleet.incident_message(v_incident, 'recovery', v_first.message_id),
      coalesce(v_incident.ended_at, now())
    );
  end loop;

  -- New trouble, which is most of what is told, in one statement. Measured: 0.04 ms a message, and 0.17 ms in the loop below.
  insert into fleet.webhook_deliveries
    (webhook_id, device_id, transition_id, event, kind, is_open, body, due_at, next_attempt_at)
  select w.webhook_id, c.device_id, c.transition_id, c.status, 'first', true,
    fleet.device_message(c.transition, d.alias, c.status, 'first'), c.at + w.grace, c.at + w.grace
  from (
    select t.device_id, t.transition_id, t.status, t.cohort, t.incident_id, t.reason, t.at, t as transition,
      count(*) over (partition by t.device_id) as of_device
    from fleet.device_transitions t
    where t.transition_id = any (p_transition_ids)
  ) c
  join fleet.webhooks w on (w.cohort is null or w.cohort = c.cohort) and c.status = any (w.events)
  cross join lateral (select fleet.alias_of(c.device_id) as alias) d
  where c.status in ('late', 'offline', 'clock_skewed', 'unity_down')
    -- Nor while heartbeats could not be stored: those who stay away have an incident.
    and (c.incident_id is null and c.reason is distinct from 'ingest_down' or c.status not in ('late', 'offline'))
    -- Several changes of a device are told one after the other.
    and c.of_device = 1
    -- As a subquery with a value, which is looked up by its index even if the table has no statistics yet. Measured: 60,000
    -- messages took 30 s with an anti-join.
    and (
      select o.delivery_id from fleet.webhook_deliveries o
      where o.webhook_id = w.webhook_id and o.device_id = c.device_id and o.is_open
      limit 1
    ) is null
  order by c.transition_id, w.webhook_id
  on conflict do nothing;
  get diagnostics v_new = row_count;
  v_queued := v_queued + v_new;

  -- Everything else that may have to be told: after an outage most devices are back from what nobody was told of.
  for v_row in
    select t.transition_id, d.alias, w.webhook_id, w.grace, w.events, t.is_over,
      w.cohort is null or w.cohort = t.cohort as is_meant,
      t.status in ('late', 'offline', 'clock_skewed', 'unity_down') and t.status = any (w.events) as is_trouble
    from (
      select a.*, count(*) over (partition by a.device_id) as of_device,
        -- A later one of these changes says that the device is in another status, and is heard from.
        coalesce(bool_or(a.status not in ('late', 'offline')) over (
          partition by a.device_id order by a.transition_id rows between 1 following and unbounded following
        ), false) as is_over
      from fleet.device_transitions a
      where a.transition_id = any (p_transition_ids)
    ) t
    cross join fleet.webhooks w
    cross join lateral (select fleet.alias_of(t.device_id) as alias) d
    where (w.cohort is null or w.cohort = t.cohort)
      and (t.event in ('online', 'back', 'revoked') and t.event = any (w.events) or t.of_device > 1)
      or (
        select o.transition_id from fleet.webhook_deliveries o
        where o.webhook_id = w.webhook_id and o.device_id = t.device_id and o.is_open
        limit 1
      ) <> t.transition_id
    order by t.transition_id, w.webhook_id
  loop
    select * into strict v_transition from fleet.device_transitions where transition_id = v_row.transition_id;
    select * into v_first
    from fleet.webhook_deliveries
    where webhook_id = v_row.webhook_id and device_id = v_transition.device_id and is_open
    for update;
    -- Seen only when it was over, as after an outage, so there is nothing to tell.
    continue when v_row.is_trouble and v_row.is_over and v_first.delivery_id is null;
    v_queued := v_queued + fleet.queue_transition(
      v_transition, v_row.alias, v_row.webhook_id, v_row.grace, v_row.events, v_row.is_meant, v_row.is_trouble, v_first
    );
  end loop;
  return v_queued;
end
$$;

comment on function fleet.queue_messages(bigint[], bigint[], bigint[]) is
  'Queues what webhooks are told of these rows of fleet.device_transitions, of these incidents that have begun and of these that '
  'have ended. Returns how many messages it queued. Must be called in the transaction that wrote the rows.';
--! EndIncluded webhooks/queue_messages.sql
--! Included webhooks/remind_webhooks.sql
create or replace function fleet.remind_webhooks(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now constant timestamptz := greatest(p_now, now());
  v_reminders bigint;
  v_dead bigint;
begin
  perform fleet.not_in_future(p_now);
  -- Before any message is locked: see fleet.remove_webhook().
  perform from fleet.webhooks w order by w.webhook_id for key share;
  -- If the clock ran ahead and was set back, some times are later than any that could be meant: a lease, the end of the grace, or
  -- what a receiver asks for. The ten minutes are for transactions that began after this one.
  update fleet.webhooks w
  set hold_until = null
  where w.webhook_id in (
    select h.webhook_id from fleet.webhooks h where h.hold_until > v_now + interval '1 day 10 minutes' for no key update skip locked
  );
  update fleet.webhook_deliveries d
  set lease_owner = null, next_attempt_at = now(), due_at = least(d.due_at, now())
  where d.delivery_id = any (array(
    select l.delivery_id
    from fleet.webhooks w
    cross join lateral (
      select s.delivery_id
      from fleet.webhook_deliveries s
      where s.webhook_id = w.webhook_id and s.state = 'pending'
        and s.next_attempt_at > v_now + least(w.grace, interval '1 hour') + interval '10 minutes'
        and s.next_attempt_at > v_now + interval '10 minutes' + case
          when s.lease_owner is not null then interval '1 hour'
          when s.attempts = 0 then w.grace
          else interval '1 day'
        end
      for update skip locked
    ) l
  ));

  with due as (
    select f.delivery_id, f.message_id, f.reminders + 1 as number
    from fleet.webhook_deliveries f
    join fleet.webhooks w using (webhook_id)
    where f.is_open and f.state = 'delivered' and w.repeat_after is not null and w.paused_at is null
      and p_now - coalesce(f.reminded_at, f.delivered_at) >= w.repeat_after
      -- A message about it that waits is newer than a reminder would be.
      and not exists (select from fleet.webhook_deliveries l where l.first_id = f.message_id and l.state = 'pending')
    order by f.delivery_id
    for update of f skip locked
  ),
  noted as (
    update fleet.webhook_deliveries f
    set reminders = d.number, reminded_at = p_now
    from due d
    where f.delivery_id = d.delivery_id
    returning f.*
  )
  insert into fleet.webhook_deliveries
    (webhook_id, device_id, incident_id, transition_id, event, kind, first_id, body, due_at, next_attempt_at)
  select f.webhook_id, f.device_id, f.incident_id, n.transition_id, n.event, 'reminder', f.message_id,
    n.body || jsonb_build_object(
      'timestamp', p_now,
      'data', (n.body -> 'data') || jsonb_build_object('kind', 'reminder', 'first_id', f.message_id, 'reminder', f.reminders)
    ),
    p_now, p_now
  from noted f
  -- The newest state that was told.
  cross join lateral (
    select d.transition_id, d.event, d.body
    from fleet.webhook_deliveries d
    where d.message_id = f.message_id or d.first_id = f.message_id and d.kind = 'change'
    order by d.delivery_id desc
    limit 1
  ) n
  order by f.delivery_id;
  get diagnostics v_reminders = row_count;

  -- What a receiver kept waiting without being asked, because it refused everything; not what waits because nobody sends.
  with seen as (
    select range_agg(tstzrange(least(n.started_at, n.last_seen_at), n.last_seen_at + interval '10 minutes')) as times
    from fleet.notifiers n
  ),
  given_up as (
    select d.delivery_id, d.message_id, d.kind, w.last_error
    from fleet.webhooks w
    join fleet.webhook_deliveries d using (webhook_id)
    cross join seen s
    where w.failures > 0 and w.paused_at is null
      and d.state = 'pending' and d.lease_owner is null and p_now - d.due_at > fleet.give_up_after()
      and (d.attempts > 0 or s.times @> tstzrange(p_now - fleet.give_up_after(), p_now))
    order by d.delivery_id
    for update of d skip locked
  ),
  -- As in fleet.fail_delivery().
  followers as (
    update fleet.webhook_deliveries l
    set state = 'dropped', last_error = 'its first message is dead'
    from given_up g
    where l.first_id = g.message_id and l.kind in ('reminder', 'recovery') and l.state = 'pending' and g.kind = 'first'
    returning l.delivery_id
  ),
  -- The other part of the same rows: a statement cannot update a row twice.
  dead as (
    update fleet.webhook_deliveries d
    set state = 'dead', last_error = coalesce(d.last_error, 'the receiver did not accept anything: ' || g.last_error)
    from given_up g
    where d.delivery_id = g.delivery_id and not exists (select from followers l where l.delivery_id = g.delivery_id)
    returning d.delivery_id
  )
  select count(*) into v_dead from dead;
  if v_dead > 0 then
    perform fleet.increment_counter('hb_webhook_dead_total', v_dead);
  end if;
  return v_reminders;
end
$$;

comment on function fleet.remind_webhooks(timestamptz) is
  'Queues a reminder of each trouble that lasts for repeat_after since the webhook was told or reminded of it, gives up on '
  'messages that could not be sent for three days, and frees those that wait for a time that a wrong clock set. Returns how many reminders. Run by pg_cron every minute. '
  'Example: select fleet.remind_webhooks();';
--! EndIncluded webhooks/remind_webhooks.sql
--! Included webhooks/replayed.sql
create or replace function fleet.replayed(p_body jsonb, p_kind text) returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_set(p_body, '{data}', (p_body -> 'data') || jsonb_build_object('kind', 'replay', 'replay_of', p_kind));
$$;

comment on function fleet.replayed(jsonb, text) is 'The body of a message that is told again; p_kind is what it was: first or recovery.';
--! EndIncluded webhooks/replayed.sql
--! Included webhooks/replay_webhook.sql
create or replace function fleet.replay_webhook(p_name text, p_from_transition bigint) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_from timestamptz;
  v_incidents bigint;
  v_devices bigint;
  v_most constant bigint := 100000;
begin
  if p_from_transition is null then
    raise exception using
      errcode = 'FL422',
      message = 'from_transition must be the number of a transition',
      hint = 'Example: select fleet.replay_webhook(''on-call'', 4711);';
  end if;
  select t.at into v_from
  from fleet.device_transitions t
  where t.transition_id >= p_from_transition
  order by t.transition_id
  limit 1;
  if not found then
    return 0;
  end if;
  -- In the order of time: of incidents that have ended first the beginning, then the end.
  insert into fleet.webhook_deliveries (webhook_id, incident_id, event, kind, body, due_at, next_attempt_at)
  select v_webhook.webhook_id, i.incident_id, fleet.incident_event(i.kind), 'replay', fleet.replayed(m.body, m.kind), now(), now()
  from fleet.incidents i
  cross join lateral (
    select i.seen_at as at, 'first' as kind, fleet.incident_message(i, 'first') as body
    union all
    select i.ended_at, 'recovery', fleet.incident_message(i, 'recovery') where i.ended_at is not null
  ) m
  where m.at >= v_from and array[fleet.incident_event(i.kind), 'offline'] && v_webhook.events
    and (v_webhook.cohort is null or i.kind = 'ingest' or i.kind = 'cohort' and i.subject = v_webhook.cohort
      or i.kind = 'network' and exists (
        select from fleet.device_transitions t where t.incident_id = i.incident_id and t.cohort = v_webhook.cohort
      ))
  order by m.at, i.incident_id;
  get diagnostics v_incidents = row_count;
  insert into fleet.webhook_deliveries (webhook_id, device_id, transition_id, event, kind, body, due_at, next_attempt_at)
  select v_webhook.webhook_id, t.device_id, t.transition_id, t.event, 'replay',
    fleet.replayed(
      fleet.device_message(t, d.alias, t.event, 'replay'), case when t.event = any (v_webhook.events) then 'first' else 'recovery' end
    ),
    now(), now()
  from fleet.device_transitions t
  cross join lateral (select fleet.alias_of(t.device_id) as alias) d
  where t.transition_id >= p_from_transition and d.alias is not null and t.incident_id is null
    and t.reason is distinct from 'ingest_down'
    and (v_webhook.cohort is null or t.cohort = v_webhook.cohort)
    -- What it asks for, and the end of that.
    and (
      t.event = any (v_webhook.events) or t.previous_status = any (v_webhook.events) and t.event in ('online', 'back', 'revoked')
    )
  order by t.transition_id
  limit v_most + 1;
  get diagnostics v_devices = row_count;
  -- All in one transaction, which ingest and the night must not have to wait for.
  if v_devices > v_most then
    raise exception using
      errcode = 'FL422',
      message = format('from transition %s on there are more than %s messages', p_from_transition, v_most),
      hint = 'Begin with a later one: select min(transition_id) from fleet.device_transitions where at > now() - interval ''1 day'';';
  end if;
  if v_incidents + v_devices > 0 then
    perform fleet.audit_webhook(
      'replayed', p_name, null, format('replay from transition %s: %s messages', p_from_transition, v_incidents + v_devices)
    );
  end if;
  perform pg_notify('fleet_notifier', 'replay');
  return v_incidents + v_devices;
end
$$;

comment on function fleet.replay_webhook(text, bigint) is
  'Sends again what a webhook would have been told from this transition on, without grace and reminders, for a receiver that lost '
  'its data. The messages have new ids and the kind replay, at most 100,000. Returns how many. '
  'Example: select fleet.replay_webhook(''on-call'', 4711);';
--! EndIncluded webhooks/replay_webhook.sql
--! Included webhooks/retry_deliveries.sql
create or replace function fleet.retry_deliveries(p_name text, p_message_id text default null) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_retried bigint;
begin
  if p_message_id is not null and not exists (
    select from fleet.webhook_deliveries d
    where d.webhook_id = v_webhook.webhook_id and d.message_id = p_message_id and d.state = 'dead'
  ) then
    raise exception using
      errcode = 'FL404',
      message = format('webhook %s has no dead message %s', p_name, p_message_id),
      hint = 'They are in fleet.webhook_deliveries: where state = ''dead''.';
  end if;
  with retried as (
    update fleet.webhook_deliveries d
    set state = 'pending', due_at = now(), next_attempt_at = now(), attempts = 0
    where d.webhook_id = v_webhook.webhook_id and d.state = 'dead' and (p_message_id is null or d.message_id = p_message_id)
    returning d.message_id
  ),
  -- What was dropped because the first message was dead, makes sense again.
  followers as (
    update fleet.webhook_deliveries l
    set state = 'pending', due_at = now(), next_attempt_at = now(), last_error = null
    from retried r
    where l.first_id = r.message_id and l.kind = 'recovery' and l.state = 'dropped'
  )
  select count(*) into v_retried from retried;
  update fleet.webhooks
  set failures = 0, hold_until = null
  where webhook_id = v_webhook.webhook_id;
  if v_retried > 0 then
    perform fleet.audit_webhook('retried', p_name, v_retried || ' dead messages', 'pending');
  end if;
  perform pg_notify('fleet_notifier', 'retry');
  return v_retried;
end
$$;

comment on function fleet.retry_deliveries(text, text) is
  'Sends the dead messages of a webhook again, or one of them, for another three days. Returns how many. '
  'Example: select fleet.retry_deliveries(''on-call'');';
--! EndIncluded webhooks/retry_deliveries.sql
--! Included webhooks/dismiss_deliveries.sql
create or replace function fleet.dismiss_deliveries(p_name text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_dismissed bigint;
begin
  update fleet.webhook_deliveries
  set state = 'dropped'
  where webhook_id = v_webhook.webhook_id and state = 'dead';
  get diagnostics v_dismissed = row_count;
  if v_dismissed > 0 then
    perform fleet.audit_webhook('dismissed', p_name, v_dismissed || ' dead messages', 'dismissed');
  end if;
  return v_dismissed;
end
$$;

comment on function fleet.dismiss_deliveries(text) is
  'Gives up the dead messages of a webhook for good, so that fleet.check() no longer reports them. Returns how many. '
  'Example: select fleet.dismiss_deliveries(''on-call'');';
--! EndIncluded webhooks/dismiss_deliveries.sql
--! Included webhooks/claim_deliveries.sql
create or replace function fleet.claim_deliveries(
  p_worker text, p_limit integer default 16, p_lease interval default '1 minute', p_per_webhook integer default 8
)
returns table (
  delivery_id bigint, message_id text, webhook_name text, url text, format text, secrets text[], event text, kind text,
  first_id text, body jsonb, attempts integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set jit = off
-- So that what is due is read in its order from the index, until there is enough. The planner expects few rows that are not behind
-- another, and would sort all that wait. Measured with 20,000 that wait: 1 ms, and 150 ms otherwise.
set enable_sort = off
as $$
#variable_conflict use_column
begin
  if p_worker is null or p_limit is null or p_limit < 0 or p_per_webhook is null or p_per_webhook < 1
    or p_lease is null or p_lease < interval '1 second' or p_lease > interval '1 hour' then
    raise exception using
      errcode = 'FL422',
      message = 'worker, limit, lease and per_webhook must be set; the lease must be between 1 second and 1 hour',
      hint = 'Example: select * from fleet.claim_deliveries(''me'');';
  end if;
  return query
    with claimed as (
      update fleet.webhook_deliveries u
      set lease_owner = p_worker, next_attempt_at = now() + p_lease, attempts = u.attempts + 1
      where u.delivery_id in (
        select c.delivery_id
        from fleet.webhooks w
        cross join lateral (
          select d.delivery_id
          from fleet.webhook_deliveries d
          where d.webhook_id = w.webhook_id and d.state = 'pending' and d.next_attempt_at <= now()
            -- In order for a device and for an incident: a later message waits until the earlier one is sent, dead or dropped.
            -- Subqueries with a value are looked up for as many as are handed out; an anti-join would read all that wait.
            and (
              select e.delivery_id from fleet.webhook_deliveries e
              where e.webhook_id = d.webhook_id and e.device_id = d.device_id and e.state = 'pending'
                and e.delivery_id < d.delivery_id
              limit 1
            ) is null
            and (
              select e.delivery_id from fleet.webhook_deliveries e
              where e.webhook_id = d.webhook_id and e.incident_id = d.incident_id and e.state = 'pending'
                and e.delivery_id < d.delivery_id
              limit 1
            ) is null
          order by d.next_attempt_at, d.delivery_id
          -- A receiver that hangs does not take all connections, and one that failed gets a single message until it accepts one.
          limit greatest(0, case when w.failures > 0 then 1 else p_per_webhook end - (
            select count(*)
            from fleet.webhook_deliveries l
            where l.webhook_id = w.webhook_id and l.state = 'pending' and l.lease_owner is not null and l.next_attempt_at > now()
          ))
          for update skip locked
        ) c
        where w.paused_at is null and coalesce(w.hold_until, '-infinity') <= now()
        limit p_limit
      )
      returning u.*
    )
    select c.delivery_id, c.message_id, w.webhook_name, w.url, w.format,
      array_remove(array[w.secret, case when w.old_secret_until > now() then w.old_secret end], null),
      c.event, c.kind, c.first_id, c.body, c.attempts
    from claimed c
    join fleet.webhooks w using (webhook_id)
    order by c.delivery_id;
end
$$;

comment on function fleet.claim_deliveries(text, integer, interval, integer) is
  'Gives this notifier a lease on messages that are due, with what it needs to send them. Of each device and webhook only the '
  'oldest message.';
--! EndIncluded webhooks/claim_deliveries.sql
--! Included webhooks/record_delivery.sql
create or replace function fleet.record_delivery(p_delivery_id bigint, p_worker text, p_status integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Before the message: see fleet.remove_webhook().
  update fleet.webhooks w
  set last_success_at = now(), failures = 0, hold_until = null
  where w.webhook_id = (
      select d.webhook_id
      from fleet.webhook_deliveries d
      where d.delivery_id = p_delivery_id and d.state = 'pending' and d.lease_owner = p_worker
    )
    and (w.failures > 0 or w.last_success_at is null or now() - w.last_success_at > interval '1 second');
  update fleet.webhook_deliveries d
  set state = 'delivered', delivered_at = now(), last_status = p_status, last_error = null, lease_owner = null
  where d.delivery_id = p_delivery_id and d.state = 'pending' and d.lease_owner = p_worker;
  if not found then
    return false;
  end if;
  perform fleet.increment_counter('hb_webhook_delivered_total');
  return true;
end
$$;

comment on function fleet.record_delivery(bigint, text, integer) is
  'Records that a receiver accepted a message. Returns false if this notifier no longer has its lease.';
--! EndIncluded webhooks/record_delivery.sql
--! Included webhooks/fail_delivery.sql
create or replace function fleet.fail_delivery(
  p_delivery_id bigint, p_worker text, p_status integer, p_error text, p_is_down boolean default false,
  p_retry_after interval default null
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- As long as the receiver asks for, if that is no longer than a day.
  v_asked constant interval := least(greatest(p_retry_after, interval '0'), interval '1 day');
  v_failed fleet.webhook_deliveries;
begin
  -- Before the message: see fleet.remove_webhook().
  perform
  from fleet.webhooks w
  where w.webhook_id = (select d.webhook_id from fleet.webhook_deliveries d where d.delivery_id = p_delivery_id)
  for no key update;
  update fleet.webhook_deliveries d
  set lease_owner = null, last_status = p_status, last_error = left(p_error, 500),
    state = case when now() - d.due_at > fleet.give_up_after() then 'dead' else 'pending' end,
    -- 5 s, 10 s, 20 s, … up to an hour, half of it by chance, so that messages that failed together do not come back together.
    next_attempt_at = now() + greatest(
      v_asked,
      least(interval '5 seconds' * power(2, least(d.attempts, 20) - 1), interval '1 hour') * (0.5 + random() / 2)
    )
  where d.delivery_id = p_delivery_id and d.state = 'pending' and d.lease_owner = p_worker
  returning d.* into v_failed;
  if not found then
    return null;
  end if;
  perform fleet.increment_counter('hb_webhook_failed_total');
  update fleet.webhooks w
  set last_error_at = now(), last_error = left(p_error, 500), last_status = p_status,
    -- Several messages that were on their way together count once.
    failures = case
      when p_is_down and coalesce(w.hold_until, '-infinity') <= now() then w.failures + 1 else w.failures
    end,
    hold_until = case
      when p_is_down and coalesce(w.hold_until, '-infinity') <= now() then now() + greatest(
        v_asked, least(interval '1 second' * power(2, least(w.failures, 20)), interval '5 minutes') * (0.5 + random() / 2)
      )
      else w.hold_until
    end
  where w.webhook_id = v_failed.webhook_id;
  if v_failed.state = 'dead' then
    perform fleet.increment_counter('hb_webhook_dead_total');
    -- What follows from a message that nobody got makes no sense to them.
    update fleet.webhook_deliveries l
    set state = 'dropped', last_error = 'its first message is dead'
    where l.first_id = v_failed.message_id and l.kind in ('reminder', 'recovery') and l.state = 'pending'
      and v_failed.kind = 'first';
  end if;
  return v_failed.state;
end
$$;

comment on function fleet.fail_delivery(bigint, text, integer, text, boolean, interval) is
  'Records that a message could not be sent, and when it is tried again: after 5 seconds at first, then after longer times, and '
  'after three days no more (dead). With p_is_down the whole receiver is given a pause. Returns the new state, or null if this '
  'notifier no longer has the lease.';
--! EndIncluded webhooks/fail_delivery.sql
--! Included webhooks/release_deliveries.sql
create or replace function fleet.release_deliveries(p_worker text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_released bigint;
begin
  update fleet.webhook_deliveries
  set lease_owner = null, next_attempt_at = now()
  where lease_owner = p_worker and state = 'pending';
  get diagnostics v_released = row_count;
  return v_released;
end
$$;

comment on function fleet.release_deliveries(text) is
  'Gives back the messages that this notifier has not finished, so that another one can send them at once. Returns how many.';
--! EndIncluded webhooks/release_deliveries.sql
--! Included webhooks/notifier_heartbeat.sql
create or replace function fleet.notifier_heartbeat(p_worker text, p_version text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.notifiers as n (worker, version)
  values (p_worker, p_version)
  on conflict (worker) do update
    set last_seen_at = now(), version = excluded.version;
$$;

comment on function fleet.notifier_heartbeat(text, text) is 'Records that a notifier is alive, and its version.';
--! EndIncluded webhooks/notifier_heartbeat.sql
--! Included webhooks/wake_notifier.sql
create or replace function fleet.wake_notifier(p_reason text default 'messages waiting') returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.webhooks w
    where w.paused_at is null and coalesce(w.hold_until, '-infinity') <= now()
      and exists (
        select from fleet.webhook_deliveries d
        where d.webhook_id = w.webhook_id and d.state = 'pending' and d.next_attempt_at <= now()
      )
  ) then
    return false;
  end if;
  perform pg_notify('fleet_notifier', p_reason);
  return true;
end
$$;

comment on function fleet.wake_notifier(text) is
  'Notifies the notifier if a message is due, and returns whether one is. Run by pg_cron every minute. '
  'Example: select fleet.wake_notifier();';
--! EndIncluded webhooks/wake_notifier.sql
--! Included webhooks/webhook_health.view.sql
create or replace view fleet.webhook_health as
select
  w.webhook_name,
  case
    when w.paused_at is not null then 'paused'
    when w.failures > 0 then 'failing'
    when d.dead > 0 then 'dead_letters'
    else 'ok'
  end as state,
  w.format,
  fleet.webhook_origin(w.url) as receiver,
  w.events,
  w.cohort,
  w.grace,
  w.repeat_after,
  d.pending,
  d.oldest_due_at,
  d.dead,
  d.open_troubles,
  w.last_success_at,
  w.last_error_at,
  w.last_error,
  w.last_status,
  w.hold_until,
  w.paused_at,
  w.created_at,
  w.created_by
from fleet.webhooks w
cross join lateral (
  select
    (select count(*) from fleet.webhook_deliveries p where p.webhook_id = w.webhook_id and p.state = 'pending') as pending,
    (
      select min(p.due_at) from fleet.webhook_deliveries p
      where p.webhook_id = w.webhook_id and p.state = 'pending' and now() - p.due_at >= interval '0'
    ) as oldest_due_at,
    (select count(*) from fleet.webhook_deliveries p where p.webhook_id = w.webhook_id and p.state = 'dead') as dead,
    (select count(*) from fleet.webhook_deliveries p where p.webhook_id = w.webhook_id and p.is_open) as open_troubles
) d;

comment on view fleet.webhook_health is
  'The webhooks, without their secrets, and how they do: messages that wait, dead letters, the last success and the last error. '
  'Example: select webhook_name, state, pending, dead, last_error from fleet.webhook_health;';
comment on column fleet.webhook_health.webhook_name is 'Its name.';
comment on column fleet.webhook_health.state is
  'ok; failing: its receiver refused or did not answer the newest attempt; dead_letters: messages that were given up; or paused.';
comment on column fleet.webhook_health.format is 'json, slack, teams, ntfy or alertmanager.';
comment on column fleet.webhook_health.receiver is 'The scheme, host and port of its URL. The rest may be secret.';
comment on column fleet.webhook_health.events is 'What it is told; see fleet.webhook_events().';
comment on column fleet.webhook_health.cohort is 'The only cohort that it is told of; null: the whole fleet.';
comment on column fleet.webhook_health.grace is 'What is over within this time is not told.';
comment on column fleet.webhook_health.repeat_after is 'After which time a reminder is sent while the trouble lasts; null: none.';
comment on column fleet.webhook_health.pending is 'Messages that wait: for the end of the grace, for an attempt, or behind another.';
comment on column fleet.webhook_health.oldest_due_at is 'When the oldest of those that are due became due; null if none is.';
comment on column fleet.webhook_health.dead is 'Messages that could not be sent for three days. See fleet.retry_deliveries().';
comment on column fleet.webhook_health.open_troubles is 'Devices and incidents that it knows, or will know, to be in trouble.';
comment on column fleet.webhook_health.last_success_at is 'When its receiver last accepted a message, to the second.';
comment on column fleet.webhook_health.last_error_at is 'When an attempt last failed.';
comment on column fleet.webhook_health.last_error is
  'Why. It stays when messages are accepted again: state says how things are now, and last_success_at is then the later time.';
comment on column fleet.webhook_health.last_status is 'The HTTP status of that attempt; null if there was no answer.';
comment on column fleet.webhook_health.hold_until is 'Until when nothing is sent, because the receiver failed.';
comment on column fleet.webhook_health.paused_at is 'When it was paused; null if it is not.';
comment on column fleet.webhook_health.created_at is 'When it was created.';
comment on column fleet.webhook_health.created_by is 'The login that created it.';
--! EndIncluded webhooks/webhook_health.view.sql
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
--! EndIncluded metrics/metric_definitions.sql
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
--! EndIncluded metrics/metric_values.sql
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
  v_late text;
  v_since timestamptz;
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
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, 0) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it has a row', 'there is none');
  remedy := case
    when v_names is not null then format(e'-- as fleet_owner\nalter table fleet.device_heartbeats detach partition %s;', v_names)
  end;
  return next;

  check_name := 'partition_indexes';
  with fault as (
    select a.partition_name, a.range_start,
      not coalesce(bool_or(i.indisunique and i.indisvalid), false) and not fleet.is_settled(a.relid)
        and not exists (  -- settled_days has those
          select from fleet.hb_partitions p where p.partition_name = a.partition_name and p.settled_at is not null
        ) as lacks_key,
      fleet.newest_index(a.relid) is null as lacks_newest,
      string_agg(format('drop index concurrently %s;', i.indexrelid::regclass), e'\n')
        filter (where not i.indisvalid) as leftovers
    from fleet.attached_partitions() a
    left join pg_index i on i.indrelid = a.relid
    group by a.partition_name, a.range_start, a.relid
  )
  select string_agg(f.partition_name, ', ' order by f.range_start),
    string_agg(
      concat_ws(
        e'\n',
        f.leftovers,
        -- Duplicates that were stored without the key prevent creating it.
        case when f.lacks_key then format(
          e'%s\ncreate unique index concurrently on fleet.%I %s;',
          fleet.remove_duplicates(f.partition_name), f.partition_name, fleet.dedupe_key()
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
  detail := coalesce('an index is missing on ' || v_names, 'every partition has its indexes');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan(null, p_now) r
  where r.action = 'retire' and r.range_end < p_now - v_settings.retention - interval '2 days'
    -- It was held or restored until then, and the next night retires it.
    and not exists (
      select 1 from fleet.events e
      where e.partition_name = r.partition_name and e.event = 'partition.release' and e.at > p_now - interval '2 days'
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'no partition is overdue to be retired');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'settled_days';
  select
    string_agg(d.partition_name, ', ' order by d.range_start) filter (where not d.is_open),
    string_agg(d.partition_name, ', ' order by d.range_start) filter (where d.is_open),
    string_agg(
      format(e'%s\nselect fleet.unsettle_partition(%L);', fleet.remove_duplicates(d.partition_name), d.partition_name),
      e'\n' order by d.range_start
    ) filter (where d.is_open)
  into v_names, v_late, v_commands
  from (
    select p.partition_name, p.range_start, p.settled_at is not null and fleet.dedupe_index(t.relid) is null as is_open
    from fleet.hb_partitions p
    cross join lateral fleet.table_of(p) as t (relid)
    where p.state in ('active', 'restored') and t.relid is not null
      and (p.settled_at is not null) <> fleet.is_settled(t.relid)
  ) d;
  if v_late is not null then
    status := 'fail';
    detail := format(
      'somebody dropped the constraint of a settled day, so it takes rows and does not recognize duplicates: %s', v_late
    );
    remedy := e'-- as superuser\n' || v_commands;
  elsif v_names is not null then
    status := 'warn';
    detail := 'fleet.hb_partitions and the catalog disagree about what is settled: ' || v_names;
    remedy := 'select fleet.sync_partitions();';
  else
    -- After an upgrade the first night has not been yet.
    select min(e.at) into v_since from fleet.events e where e.event = 'maintenance.settle';
    with late as (
      select s.*
      from fleet.settle_plan(p_now) s
      where s.action = 'unsettle'
        or s.action = 'too_large' and p_now - s.due_at > interval '3 days'
        or s.action = 'settle' and v_since is not null and p_now - greatest(s.due_at, v_since) > interval '3 days'
    )
    select
      string_agg(format('%s (%s)', l.partition_name, l.reason), ', ' order by l.range_start desc)
        filter (where l.action = 'unsettle'),
      string_agg(format('%s (%s)', l.partition_name, l.reason), ', ' order by l.range_start desc)
        filter (where l.action <> 'unsettle'),
      concat_ws(
        e'\n',
        case when bool_or(l.action = 'unsettle') then 'call fleet.maintain();' end,
        case when bool_or(l.action = 'too_large') then format(
          'update fleet.settings set settle_max_wait = ''%s seconds'';', ceil(extract(epoch from max(l.estimate)) * 1.5)
        ) end,
        case when bool_or(l.action <> 'unsettle') then 'call fleet.nightly();' end
      )
    into v_names, v_late, v_commands
    from late l;
    status := case when v_names is null and v_late is null then 'ok' else 'warn' end;
    detail := concat_ws(
      '; ', 'settled, but heartbeats are accepted again: ' || v_names, 'for more than three days not settled: ' || v_late
    );
    detail := coalesce(nullif(detail, ''), 'past days are settled, or will be soon');
    remedy := nullif(v_commands, '');
  end if;
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
  'The part of fleet.check() about partitions: today''s, those ahead, gaps, names, indexes, retention, settled days, '
  'rollups and the guard.';
--! EndIncluded checks/check_partitions.sql
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
  v_months text;
  v_count bigint;
  v_age interval;
  v_silence interval;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  select p_now - max(a.last_seen_at) into v_silence
  from fleet.archivers a
  where a.last_seen_at <= greatest(p_now, clock_timestamp());  -- the clock may have run ahead

  check_name := 'archive_failed';
  -- One cause mostly stops all of them, so an error is said once, after the names of all partitions that have it.
  select string_agg(format('%s: %s', e.names, e.last_error), '; ' order by e.range_start),
    string_agg(e.commands, e'\n' order by e.range_start)
  into v_names, v_commands
  from (
    select p.last_error, min(p.range_start) as range_start, string_agg(p.partition_name, ', ' order by p.range_start) as names,
      string_agg(format('select fleet.retry_archive(%L);', p.partition_name), e'\n' order by p.range_start) as commands
    from fleet.hb_partitions p
    where p.state = 'archive_failed'
    group by p.last_error
  ) e;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'none');
  remedy := e'-- once the cause is fixed\n' || v_commands;
  return next;

  check_name := 'archive_backlog';
  select count(*), p_now - min(p.detached_at) into v_count, v_age
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving') and p.held_reason is null;
  select string_agg(to_char(d, 'YYYY-MM') || coalesce(': ' || a.last_error, ''), ', ' order by d) into v_months
  from fleet.audit_months_due() d
  left join fleet.audit_archives a on a.month = d
  where d + interval '1 month 2 days' < p_now;
  status := case
    when v_count > 0 and v_age >= interval '2 days' then 'fail'
    when v_count > 0 and v_age >= interval '6 hours' or v_months is not null then 'warn'
    else 'ok'
  end;
  detail := format('%s partitions are waiting%s', v_count, ', the oldest for ' || date_trunc('second', v_age))
    || coalesce('; so does the audit log of ' || v_months, '');
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
  select string_agg(format('%s: %s', e.names, e.last_error), '; ' order by e.range_start),
    string_agg(e.commands, e'\n' order by e.range_start)
  into v_names, v_commands
  from (
    select i.last_error, min(p.range_start) as range_start, string_agg(i.partition_name, ', ' order by p.range_start) as names,
      string_agg(
        format('select fleet.request_restore(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date),
        e'\n' order by p.range_start
      ) as commands
    from fleet.restore_items i
    join fleet.hb_partitions p using (partition_name)
    where i.state = 'failed' and i.finished_at > p_now - interval '1 day'
      and not exists (
        select from fleet.restore_items l where l.partition_name = i.partition_name and l.request_id > i.request_id
      )
    group by i.last_error
  ) e;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('failed: ' || v_names, 'none failed in the last day');
  remedy := e'-- once the cause is fixed; npm run archive -- verify shows it\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_archive(timestamptz) is
  'The part of fleet.check() about the archive: failures, backlog, the archiver and restores.';
--! EndIncluded checks/check_archive.sql
--! Included ingest/unreadable_fields.view.sql
create or replace view fleet.unreadable_fields with (security_invoker = true) as
select f.device_id, d.alias, d.cohort, f.field, f.times, f.first_at, f.last_at, f.example
from fleet.device_unreadable_fields f
join fleet.devices d using (device_id);

comment on view fleet.unreadable_fields is
  'What agents send that cannot be read, by device and field: how often, since when, and the last value. An optional field is left '
  'out and the rest of the heartbeat counts. For ts, device_id and body the heartbeat was refused. Kept for '
  'settings.quarantine_keep. Example: select * from fleet.unreadable_fields where last_at > now() - interval ''1 hour'';';
--! EndIncluded ingest/unreadable_fields.view.sql
--! Included ingest/record_unreadable_fields.sql
create or replace function fleet.record_unreadable_fields(p_counts json) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.device_unreadable_fields as f (device_id, field, times, first_at, last_at, example)
  select r.device_id, r.field, r.times, now(), now(), r.example
  from json_to_recordset(p_counts) as r (device_id bigint, field text, times bigint, example text)
  join fleet.devices d using (device_id)  -- a gateway may name a device that does not exist
  order by r.device_id, r.field
  on conflict on constraint device_unreadable_fields_pkey do update
    set times = f.times + excluded.times,
      last_at = excluded.last_at,
      example = excluded.example;
end
$$;

comment on function fleet.record_unreadable_fields(json) is
  'Records fields that a server process could not read, by device; sent every 10 seconds. Example: select '
  'fleet.record_unreadable_fields(''[{"device_id":1,"field":"battery_pct","times":3,"example":"87.5"}]'');';
--! EndIncluded ingest/record_unreadable_fields.sql
--! Included checks/check_devices.sql
create or replace function fleet.check_devices(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set jit = off
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  -- More than that have one cause in common, such as an interval that was changed.
  c_candidates constant integer := 10000;
  c_named constant integer := 10;
  v_day date;
  v_candidates bigint[];
  v_count bigint;
  v_names text;
  v_commands text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'shared_tokens';
  select max(r.day) into v_day
  from fleet.rolled_up_days r
  where r.day between p_now::date - 3 and p_now::date - 1
    and exists (select from fleet.rolled_up_days b where b.day = r.day - 1);

  v_candidates := array(
    select a.device_id
    from fleet.device_availability_daily a
    where a.day = v_day and a.beats > a.expected * 1.5 + 10
    order by a.device_id
    limit c_candidates
  );
  -- Two days in a row, because a clock that jumps back, or heartbeats of an import, can double one. A device that was slowed
  -- sent more before, so its shortest interval of these days and the day before them counts.
  select count(*),
    string_agg(
      format('device %s (%s) sent %s heartbeats instead of %s', f.device_id, f.alias, f.beats, f.expected),
      '; ' order by f.nth
    ) filter (where f.nth <= c_named),
    string_agg(format('select fleet.renew_token(%s);', f.device_id), e'\n' order by f.nth) filter (where f.nth <= c_named)
  into v_count, v_names, v_commands
  from (
    select l.device_id, l.alias, l.beats, l.expected, row_number() over (order by l.excess desc, l.device_id) as nth
    from (
      select a.device_id, a.alias, max(a.beats) filter (where a.day = v_day) as beats,
        max(a.expected) filter (where a.day = v_day) as expected,
        count(*) filter (where a.day >= v_day - 1 and a.beats > 1.5 * a.expected + 10) as days,
        max(a.beats / greatest(a.expected, 1.0)) filter (where a.day = v_day) as excess
      from (
        select w.device_id, w.day, w.beats, d.alias,
          round(
            w.expected * extract(epoch from w.heartbeat_interval) / extract(epoch from least(d.heartbeat_interval, w.shortest))
          )::integer as expected
        from (
          select o.device_id, o.day, o.beats, o.expected, o.heartbeat_interval,
            min(o.heartbeat_interval) over (partition by o.device_id) as shortest
          from fleet.device_availability_daily o
          where o.device_id = any (v_candidates) and o.day between v_day - 2 and v_day
        ) w
        join fleet.devices d on d.device_id = w.device_id
        where w.day >= v_day - 1 and d.revoked_at is null
          -- After a new token or interval, only the days that follow count.
          and (d.changed_at is null or d.changed_at < (v_day - 1)::timestamptz)
      ) a
      group by a.device_id, a.alias
    ) l
    where l.days = 2
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case
    when v_day is null then 'no two days are rolled up yet'
    when v_count = 0 then format('no device sent more than expected on %s and the day before', v_day)
    else format(
      '%s devices sent more than 1.5 times as many heartbeats as expected on %s and the day before: %s%s',
      v_count, v_day, v_names, case when v_count > c_named then '; …' end
    )
  end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- was an image cloned? Then enroll each copy (fleet.enroll_device), and give the device the token that this prints',
      v_commands
    )
  end;
  return next;
end
$$;

comment on function fleet.check_devices(timestamptz) is
  'The part of fleet.check() about devices: those that sent more than 1.5 times as many heartbeats as expected on the last two '
  'days that are rolled up, because several of them use one token. Reads the rollups, and no heartbeats. '
  'Example: select * from fleet.check_devices();';
--! EndIncluded checks/check_devices.sql
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
set jit = off
as $$
#variable_conflict use_column
declare
  -- They read tables that a distributed store has on its workers.
  c_on_workers constant text[] := array[
    'check_partitions', 'check_ingest', 'check_fields', 'check_silence', 'check_devices', 'check_storage'
  ];
  v_theme text;
  v_away text;
begin
  perform fleet.not_in_future(p_now);
  v_away := fleet.nodes_away();
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_fields($1)', 'check_silence($1)', 'check_devices($1)', 'check_scheduler($1)',
    'check_archive($1)', 'check_erasures($1)', 'check_webhooks($1)', 'check_columns()', 'check_readers()', 'check_sessions($1)',
    'check_storage($1)', 'check_imports($1)', 'check_settings()', 'check_nodes($1)'
  ] loop
    if v_away is not null and split_part(v_theme, '(', 1) = any (c_on_workers) then
      check_name := split_part(v_theme, '(', 1);
      status := 'warn';
      detail := format('could not be judged, because %s does not answer', v_away);
      remedy := format(e'-- once it answers again\nselect * from fleet.%I();', check_name);
      return next;
      continue;
    end if;
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
--! Included jobs/prune.sql
create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_settings fleet.settings;
  v_last_day date;
  v_quarantined bigint;
  v_events bigint;
  v_commands bigint;
  v_dispatches bigint;
  v_rollups bigint;
  v_messages bigint;
  v_transitions bigint;
  v_audited bigint;
begin
  select * into strict v_settings from fleet.settings;
  v_last_day := (p_now - greatest(v_settings.rollups_keep, v_settings.retention) - interval '1 microsecond')::date;
  delete from fleet.heartbeat_quarantine q
  where q.received_at < p_now - v_settings.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  where e.at < p_now - v_settings.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.device_commands c
  where c.created_at < p_now - v_settings.commands_keep;
  get diagnostics v_commands = row_count;
  delete from fleet.command_dispatch_log l
  where l.at < p_now - v_settings.commands_keep;
  get diagnostics v_dispatches = row_count;
  delete from fleet.device_transitions t
  where t.at < p_now - v_settings.transitions_keep;
  get diagnostics v_transitions = row_count;
  delete from fleet.incidents i
  where i.ended_at < p_now - v_settings.transitions_keep;
  delete from fleet.device_unreadable_fields f
  where f.last_at < p_now - v_settings.quarantine_keep;
  delete from fleet.device_slowdowns d
  where d.last_at < p_now - v_settings.quarantine_keep;
  delete from fleet.device_availability_daily a
  where a.day <= v_last_day;
  get diagnostics v_rollups = row_count;
  delete from fleet.rolled_up_days r
  where r.day <= v_last_day;
  delete from fleet.late_arrivals l
  where l.day <= v_last_day;
  delete from fleet.storage_daily d
  where d.day < p_now - v_settings.rollups_keep;
  delete from fleet.cohorts c
  where c.min_interval is null and c.changed_at < p_now - interval '7 days';
  delete from fleet.slo_counts c
  where c.minute < p_now - interval '7 days';
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  delete from fleet.webhook_deliveries d
  -- What waits is not pruned, and neither is the first message of a trouble that lasts: its recovery names it.
  where d.made_at < p_now - v_settings.webhook_keep and d.state <> 'pending' and not d.is_open;
  get diagnostics v_messages = row_count;
  v_audited := fleet.prune_audit_log();
  delete from fleet.sessions s
  where s.ends_at < p_now - interval '7 days';
  delete from fleet.notifiers n
  where n.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches + v_rollups + v_transitions + v_messages + v_audited;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Deletes quarantined heartbeats, events, commands, transitions, rollups, messages to webhooks and rows of the audit log '
  'that are older than their settings; returns how many. Run by fleet.nightly().';
--! EndIncluded jobs/prune.sql
--! Included status/add_last_status.sql
create or replace function fleet.add_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids bigint[];
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  v_ids := array(select c.device_id from changed c);
  insert into fleet.device_last_status (device_id, is_silent, noted_status, noted_since, late_after_s)
  select d.device_id, false, case when d.revoked_at is null then 'new' else 'revoked' end, coalesce(d.revoked_at, now()),
    floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))
  from fleet.devices d
  where d.device_id = any (v_ids)
  order by d.device_id
  on conflict do nothing;
  return null;
end
$$;

comment on function fleet.add_last_status() is
  'Trigger on fleet.devices and fleet.device_last_status: each device has a row of last status, also before its first heartbeat, '
  'however it was enrolled. So devices without a heartbeat are found by an index.';
--! EndIncluded status/add_last_status.sql
--! Included status/device_last_status.trigger.sql
do $$
begin
  -- Citus refuses triggers on distributed tables.
  if fleet.is_distributed() then
    return;
  end if;

  create or replace trigger device_last_status_add_last_status
    after delete on fleet.device_last_status
    referencing old table as changed
    for each statement execute function fleet.add_last_status();

  comment on trigger device_last_status_add_last_status on fleet.device_last_status is
    'A row that is deleted by hand comes back empty, as if its device had just been enrolled.';
end
$$;
--! EndIncluded status/device_last_status.trigger.sql
--! Included devices/note_change.sql
create or replace function fleet.note_change() returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  new.changed_at := now();
  return new;
end
$$;

comment on function fleet.note_change() is
  'Trigger on fleet.devices: notes when the token, the cohort or the interval of a device was changed, because '
  'fleet.check_devices() judges only what it sent since.';
--! EndIncluded devices/note_change.sql
--! Included erase/tables_of_devices.sql
-- From the catalog, so that a table that somebody adds is found, too. The tables of erasures themselves have to know the device.
create or replace function fleet.tables_of_devices() returns setof regclass
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.oid::regclass
  from pg_class c
  join pg_attribute a on a.attrelid = c.oid and a.attname = 'device_id' and a.attnum > 0 and not a.attisdropped
  where c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached'))
    and c.relkind = 'r'
    and c.oid <> 'fleet.erasures'::regclass
  order by c.oid::regclass::text;
$$;

comment on function fleet.tables_of_devices() is
  'Every table that holds rows of devices, from the catalog: those with a column device_id, without fleet.erasures. An erasure '
  'ends only when none of them has a row of its device.';
--! EndIncluded erase/tables_of_devices.sql
--! Included devices/delete_device_rows.sql
create or replace function fleet.delete_device_rows(p_device_ids bigint[]) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table regclass;
  v_rows bigint;
  v_total bigint := 0;
begin
  -- A day that is rolled up knows how many devices it counted. It must not be rolled up again because one of them is gone.
  with gone as (
    delete from fleet.device_availability_daily a
    where a.device_id = any (p_device_ids)
    returning a.day
  ),
  fewer as (
    update fleet.rolled_up_days r
    set devices = r.devices - g.devices
    from (select o.day, count(*) as devices from gone o group by o.day) g
    where g.day = r.day
  )
  select count(*) into v_total from gone;
  -- What else has rows of devices. Heartbeats are deleted by partition.
  for v_table in
    select t
    from fleet.tables_of_devices() t
    join pg_class c on c.oid = t
    where c.relnamespace = 'fleet'::regnamespace and not c.relispartition and t <> 'fleet.devices'::regclass
      and t <> 'fleet.device_availability_daily'::regclass
      and c.relname not like 'device\_heartbeats\_%' and c.relname not like 'restoring\_%' and c.relname not like 'erasing\_%'
      and has_table_privilege(t, 'delete')
  loop
    execute format('delete from %s where device_id = any ($1)', v_table) using p_device_ids;
    get diagnostics v_rows = row_count;
    v_total := v_total + v_rows;
  end loop;
  return v_total;
end
$$;

comment on function fleet.delete_device_rows(bigint[]) is
  'Deletes what is stored of devices except their heartbeats: last status, quarantine, commands and their dispatch log, rollups, '
  'late arrivals, unreadable fields, and the rows of any other table with a column device_id. Returns how many rows. Called when '
  'a device is deleted.';
--! EndIncluded devices/delete_device_rows.sql
--! Included devices/forget_devices.sql
create or replace function fleet.forget_devices() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device_ids bigint[] := array(select g.device_id from gone g);
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  if cardinality(v_device_ids) > 0 then
    perform fleet.delete_device_rows(v_device_ids);
  end if;
  return null;
end
$$;

comment on function fleet.forget_devices() is
  'Trigger on fleet.devices: a device that is deleted leaves no row behind, except its heartbeats, which fleet.erase_device() '
  'deletes.';
--! EndIncluded devices/forget_devices.sql
--! Included devices/devices.trigger.sql
create or replace trigger devices_forget_marks
  after update of heartbeat_interval on fleet.devices
  for each statement execute function fleet.forget_marks();

comment on trigger devices_forget_marks on fleet.devices is
  'A changed interval changes the time after which a device is offline.';

create or replace trigger devices_note_change
  before update of token_hash, revoked_at, cohort, heartbeat_interval on fleet.devices
  for each row execute function fleet.note_change();

comment on trigger devices_note_change on fleet.devices is 'Keeps fleet.devices.changed_at.';

create or replace trigger devices_add_last_status
  after insert on fleet.devices
  referencing new table as changed
  for each statement execute function fleet.add_last_status();

comment on trigger devices_add_last_status on fleet.devices is 'Gives new devices a row of last status.';

-- Not foreign keys: those would cost each upsert of last status a look at fleet.devices.
create or replace trigger devices_forget
  after delete on fleet.devices
  referencing old table as gone
  for each statement execute function fleet.forget_devices();

comment on trigger devices_forget on fleet.devices is 'Deletes what else is stored of a deleted device, except its heartbeats.';

create or replace trigger devices_record_changes
  after update on fleet.devices
  referencing old table as was new table as changed
  for each statement execute function fleet.record_device_changes();

comment on trigger devices_record_changes on fleet.devices is
  'A device that is revoked has a transition, and one with another interval is late after another time.';

-- The functions run as the owner.
create or replace trigger devices_audit
  after update on fleet.devices
  referencing old table as was new table as changed
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_devices();

comment on trigger devices_audit on fleet.devices is 'Records an UPDATE by hand in fleet.audit_log.';
--! EndIncluded devices/devices.trigger.sql
--! Included devices/enrolled_devices.view.sql
-- date_part() and not extract(), which makes a numeric and takes longer.
create or replace view fleet.enrolled_devices as
select d.device_id, d.alias, d.cohort, d.token_hash,
  date_part('epoch', greatest(d.heartbeat_interval, c.min_interval))::integer as next_interval_s
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
where d.revoked_at is null;

comment on view fleet.enrolled_devices is
  'The devices that may send heartbeats: enrolled and not revoked, each with the SHA-256 of its token and the interval to ask it '
  'for, which its cohort may lengthen. Read by fleet.authenticate() and fleet.ingest_batch(); nobody else may, because of the hash.';
--! EndIncluded devices/enrolled_devices.view.sql
--! Included devices/authenticate.sql
create or replace function fleet.authenticate(p_token_hash bytea)
returns table (kind text, device_id bigint, gateway_id bigint, name text, cohort text, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'device', d.device_id, null::bigint, d.alias, d.cohort, d.next_interval_s
  from fleet.enrolled_devices d
  where d.token_hash = p_token_hash
  union all
  select 'gateway', null, g.gateway_id, g.gateway_name, null, null
  from fleet.gateways g
  where g.token_hash = p_token_hash and g.revoked_at is null;
$$;

comment on function fleet.authenticate(bytea) is
  'Returns whose token has this SHA-256: a device (with the interval to ask it for) or a gateway. Returns no row if the token is '
  'unknown or revoked. For calls that are not heartbeats: those are authenticated by fleet.ingest_batch(). '
  'Example: select * from fleet.authenticate(fleet.hash_token(''nxd_42_…''));';
--! EndIncluded devices/authenticate.sql
--! Included devices/make_device_token.sql
create or replace function fleet.make_device_token(p_device_id bigint) returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.make_token(format('nxd_%s_', p_device_id));
$$;

comment on function fleet.make_device_token(bigint) is
  'Returns a new token for a device: nxd_, its id in clear, and the secret. The id is for people and routers, and proves nothing: '
  'a token is known by the SHA-256 of its whole text.';
--! EndIncluded devices/make_device_token.sql
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
  v_device_id bigint := nextval(pg_get_serial_sequence('fleet.devices', 'device_id'));
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.enroll_device(''lobby-tablet-7'');';
  end if;
  perform fleet.check_cohort(p_cohort, 'Leave it out for the cohort named default.');
  token := fleet.make_device_token(v_device_id);
  insert into fleet.devices as d (device_id, alias, cohort, token_hash)
  overriding system value
  values (v_device_id, p_alias, p_cohort, fleet.hash_token(token))
  on conflict (alias) do nothing
  returning d.device_id into create_device.device_id;
  if not found then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias and fleet.may_reach(d.cohort);
    raise exception using
      errcode = 'FL409',
      message = format('a device with alias %s is already enrolled', p_alias),
      hint = case when v_other is null then 'Choose another alias: aliases are unique in the whole fleet.' else format(
        'If this is device %s after a reset or a reinstall, give it a new token: '
        'select fleet.renew_token(%s); or POST /admin/devices/%s/token. '
        'If it is another device, choose another alias: aliases are unique, including those of revoked devices.',
        v_other, v_other, v_other
      ) end;
  end if;
  perform fleet.audit(
    'device.enrolled', 'device:' || v_device_id, p_after => jsonb_build_object('alias', p_alias, 'cohort', p_cohort)
  );
end
$$;

comment on function fleet.create_device(text, text) is
  'Enrolls a device. Returns its id and its token, which is shown only now. '
  'Example: select * from fleet.create_device(''lobby-tablet-7'', ''lobby'');';
--! EndIncluded devices/create_device.sql
--! Included devices/renew_token.sql
create or replace function fleet.renew_token(p_device_id bigint) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_device_token(p_device_id);
  v_device fleet.devices := fleet.get_device(p_device_id);
begin
  update fleet.devices
  set token_hash = fleet.hash_token(v_token), revoked_at = null
  where device_id = p_device_id;
  perform fleet.audit(
    'device.token_renewed', 'device:' || p_device_id,
    p_before => jsonb_build_object('alias', v_device.alias, 'revoked_at', v_device.revoked_at)
  );
  perform fleet.record_event(
    'device.token_renewed',
    p_detail => format(
      'device %s (%s) got a new token%s; by %s',
      p_device_id, v_device.alias,
      case
        when v_device.revoked_at is not null
          then format(', the old one had been revoked at %s', date_trunc('second', v_device.revoked_at))
      end,
      (fleet.current_actor()).actor
    )
  );
  return v_token;
end
$$;

comment on function fleet.renew_token(bigint) is
  'Gives a device a new token, which is shown only now. It replaces one that was lost, revoked or never known; the old one '
  'ends with the commit. '
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
  v_device fleet.devices := fleet.get_device(p_device_id);
begin
  if v_device.revoked_at is not null then
    return false;
  end if;
  update fleet.devices
  set revoked_at = now()
  where device_id = p_device_id;
  perform fleet.audit('device.revoked', 'device:' || p_device_id, p_before => jsonb_build_object('alias', v_device.alias));
  perform fleet.record_event(
    'device.revoked',
    p_detail => format('device %s (%s); by %s', p_device_id, v_device.alias, (fleet.current_actor()).actor)
  );
  return true;
end
$$;

comment on function fleet.revoke_device(bigint) is
  'Revokes a device''s token: from the commit on, servers refuse it. Returns false if it was already revoked. Its heartbeats stay. '
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
  perform fleet.audit('gateway.revoked', 'gateway:' || p_name);
  return true;
end
$$;

comment on function fleet.revoke_gateway(text) is
  'Revokes a gateway''s token: from the commit on, servers refuse it. Returns false if it was already revoked. '
  'Example: select fleet.revoke_gateway(''warehouse-3'');';
--! EndIncluded devices/revoke_gateway.sql
--! Included devices/set_cohort_interval.sql
create or replace function fleet.set_cohort_interval(p_cohort text, p_interval interval) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval;
  v_last interval;
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
  select c.min_interval, greatest(c.min_interval, case when now() - c.changed_at < 2 * c.last_interval then c.last_interval end)
  into v_old, v_last
  from fleet.cohorts c
  where c.cohort = p_cohort;
  if v_old is distinct from p_interval then
    insert into fleet.cohorts as c (cohort, min_interval, last_interval, changed_at)
    values (p_cohort, p_interval, v_last, now())
    on conflict (cohort) do update
      set min_interval = excluded.min_interval,
        last_interval = excluded.last_interval,
        changed_at = excluded.changed_at;
    perform fleet.audit('cohort_interval.changed', 'cohort_interval:' || p_cohort, to_jsonb(v_old::text), to_jsonb(p_interval::text));
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
      -- A device that was erased does not come back with an old table.
      and not (
        a.match_by = 'device_id'
        and exists (select from fleet.erasures e where e.device_id::text = r.source_device)
      )
  ),
  enrolled as (
    insert into fleet.devices (device_id, alias, token_hash)
    overriding system value
    select u.device_id, u.source_device, fleet.hash_token(fleet.make_device_token(u.device_id))
    from unknown u
    order by u.source_device
    on conflict do nothing
    returning device_id, alias
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
--! Included partitions/grant_maintain.sql
create or replace function fleet.grant_maintain() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table regclass;
  v_roles text;
  v_granted integer := 0;
begin
  if current_setting('server_version_num')::integer < 170000 then
    return 0;
  end if;
  for v_table, v_roles in
    select c.oid::regclass, case c.relnamespace when 'fleet'::regnamespace then 'fleet_owner' else 'fleet_owner, fleet_archiver' end
    from pg_class c
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace) and c.relkind in ('r', 'p')
      and c.relowner = 'fleet_owner'::regrole
      and (
        not has_table_privilege('fleet_owner', c.oid, 'maintain')
        or c.relnamespace = 'fleet_detached'::regnamespace and not has_table_privilege('fleet_archiver', c.oid, 'maintain')
      )
  loop
    execute format('grant maintain on %s to %s', v_table, v_roles);
    v_granted := v_granted + 1;
  end loop;
  return v_granted;
end
$$;

comment on function fleet.grant_maintain() is
  'Lets the owner, and for retired tables also the archiver, vacuum tables from which this right was revoked with all others, or '
  'that came from a PostgreSQL before 17, which has no such right. Returns for how many. Run by fleet.make_read_only(), '
  'fleet.relink_tables() and migrations.';
--! EndIncluded partitions/grant_maintain.sql
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
    perform fleet.grant_maintain();
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
  where x.prepared < p_now - interval '10 minutes'
    -- Those of Citus are decided by the node that began them: fleet.check_nodes().
    and not (x.gid like 'citus\_%' and fleet.is_distributed());
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
  select count(*) filter (where s.backend_type = 'client backend'), count(*) filter (where s.application_name = 'nexmdm report')
  into v_used, v_workers
  from pg_stat_activity s;
  -- Each worker has a pool (10 connections, unless POOL_MAX is set) and up to 3 more. The rest is for the archiver and people.
  v_wanted := greatest(v_workers * (10 + 3) + 50, ceil(v_used * 1.3));
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
--! Included availability/is_ingest_down.sql
-- Only devices that were heard from in the day before count: devices that are off for good would make any pause look long.
create or replace function fleet.is_ingest_down(p_newest timestamptz, p_now timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  select case
    when p_now - p_newest > (select s.ingest_gap from fleet.settings s) then exists (
      -- The first devices nearly always decide it. Nobody has to look at a million of them in each read of an outage.
      select
      from (values (10000), (null)) as t (most)
      cross join lateral (
        -- A device that announced its next heartbeat for later owes none before.
        select sum(
          extract(
            epoch from greatest(
              least(p_now - p_newest, p_now - least(h.last_received_at, p_newest) - fleet.excused(h.next_in_s, e.expected)),
              interval '0'
            )
          ) / extract(epoch from e.expected)
        ) as due
        from (
          select ls.device_id, ls.last_received_at, ls.next_in_s
          from fleet.device_last_status ls
          where ls.last_received_at > p_newest - interval '1 day'
          limit t.most
        ) h
        cross join lateral (
          select fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
          from fleet.devices d
          left join fleet.cohorts c on c.cohort = d.cohort
          where d.device_id = h.device_id and d.revoked_at is null
          offset 0
        ) e
      ) n
      where n.due >= 20
    )
    else false
  end;
$$;

comment on function fleet.is_ingest_down(timestamptz, timestamptz) is
  'Whether nothing has come in from any device for so long that the fault must be ours: for longer than settings.ingest_gap, '
  'and at least 20 heartbeats were due in that time. Takes the newest received_at, and the time to judge by.';
--! EndIncluded availability/is_ingest_down.sql
--! Included availability/rollup_plan.sql
create or replace function fleet.rollup_plan(p_now timestamptz default now())
returns table (day date, partition_name text, state text, action text, due_at timestamptz)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
begin
  return query
    with days as materialized (
      select g.day::date as day, p.partition_name, p.state
      from fleet.hb_partitions p
      join pg_class t on t.oid = fleet.table_of(p)
      cross join lateral generate_series(p.range_start, least(p.range_end, p_now) - interval '1 day', interval '1 day') as g (day)
    ),
    gone as materialized (
      select case
          when d.revoked_at > d.enrolled_at then (d.revoked_at - interval '1 microsecond')::date + 1
          -- Such a device was never expected.
          else d.enrolled_at::date
        end as day,
        count(*) as devices
      from fleet.devices d
      where d.revoked_at is not null
      group by 1
    ),
    -- The roster of each day. Reads each entry of an index once, and no device that is enrolled.
    rosters as materialized (
      select w.day,
        sum(e.devices) over (order by w.day)
          - (select coalesce(sum(o.devices), 0) from gone o where o.day <= w.day) as devices
      from (
        select d.day, lag(d.day) over (order by d.day) as previous from (select distinct y.day from days y) d
      ) w
      cross join lateral (
        select count(*) as devices
        from fleet.devices d
        where d.enrolled_at >= coalesce((w.previous + 1)::timestamptz, '-infinity') and d.enrolled_at < (w.day + 1)::timestamptz
      ) e
    ),
    late as materialized (
      select l.day, min(l.arrived_at) as since
      from fleet.late_arrivals l
      group by l.day
    )
    select d.day, d.partition_name, d.state,
      case when r.day is not null and r.devices = n.devices then 'rebuild' else 'roll_up' end,
      case when r.devices = n.devices or n.devices = 0 then l.since else (d.day + 1)::timestamptz end
    from days d
    join rosters n on n.day = d.day
    cross join (select i.* from fleet.settings i where fleet.not_in_future(p_now) is not null) s
    left join fleet.rolled_up_days r on r.day = d.day
    left join late l on l.day = d.day
    where
      -- Not rolled up yet, or rolled up before its roster changed, for example by devices enrolled with an earlier date.
      d.day >= p_now - greatest(s.rollups_keep, s.retention) and coalesce(r.devices, 0) <> n.devices
      -- Also a day without a roster: heartbeats from before their device was enrolled must not wait forever.
      or l.day is not null
    order by d.day;
end
$$;

comment on function fleet.rollup_plan(timestamptz) is
  'Lists the past days to roll up, and those to rebuild because of late arrivals, and since when each is due. '
  'Example: select * from fleet.rollup_plan();';
--! EndIncluded availability/rollup_plan.sql
--! Included partitions/dedupe_key.sql
create or replace function fleet.dedupe_key() returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(
    pg_get_indexdef('fleet.device_heartbeats_template_dedupe_key'::regclass), '^.* USING btree ', ''
  );
$$;

comment on function fleet.dedupe_key() is
  'The columns and expressions of the dedupe key, as the index of the template table has them.';
--! EndIncluded partitions/dedupe_key.sql
--! Included partitions/attached_partitions.sql
-- The catalog alone decides what is a partition. Names are not parsed, because pg_partman 4 and 5 name partitions differently.
-- With the oid of the table, pg_get_expr() would lock it, and wait for a partition that is being settled.
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
    select regexp_match(pg_get_expr(c.relpartbound, 0), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') as bounds
  ) b
  where i.inhparent = to_regclass('fleet.device_heartbeats')
    and b.bounds is not null
  order by 3;
$$;

comment on function fleet.attached_partitions() is
  'The partitions that are attached to fleet.device_heartbeats, with their bounds, from the catalog.';
--! EndIncluded partitions/attached_partitions.sql
--! Included partitions/has_bounds.sql
-- See fleet.attached_partitions() for the 0.
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
      and pg_get_expr(c.relpartbound, 0) = format('FOR VALUES FROM (%L) TO (%L)', p_range_start, p_range_end)
  );
$$;

comment on function fleet.has_bounds(oid, timestamptz, timestamptz) is
  'Whether a table is attached to fleet.device_heartbeats with exactly these bounds.';
--! EndIncluded partitions/has_bounds.sql
--! Included partitions/dedupe_index.sql
-- From the catalog alone: pg_get_indexdef() would lock the table, and wait for a partition that is being settled.
create or replace function fleet.dedupe_index(p_table oid) returns oid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select i.indexrelid
  from pg_index i
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attname = 'device_id'
  where i.indrelid = p_table and i.indisunique and i.indisvalid
    and i.indnkeyatts = 2 and i.indkey[1] = 0  -- an expression
    and i.indpred is null
  order by i.indexrelid
  limit 1;
$$;

comment on function fleet.dedupe_index(oid) is
  'The valid unique index of a partition by which ingest finds duplicates; null if the partition has none, as when it is settled.';
--! EndIncluded partitions/dedupe_index.sql
--! Included partitions/newest_index.sql
-- From the catalog alone; see fleet.dedupe_index().
create or replace function fleet.newest_index(p_table oid) returns oid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select i.indexrelid
  from pg_index i
  join pg_attribute d on d.attrelid = i.indrelid and d.attnum = i.indkey[0] and d.attname = 'device_id'
  join pg_attribute t on t.attrelid = i.indrelid and t.attnum = i.indkey[1] and t.attname = 'ts'
  where i.indrelid = p_table and not i.indisunique and i.indisvalid and i.indnkeyatts = 2 and i.indpred is null
    and i.indoption[0] = 0 and i.indoption[1] = 3  -- descending, nulls first
  order by i.indexrelid
  limit 1;
$$;

comment on function fleet.newest_index(oid) is
  'The valid index of a partition by (device_id, ts desc), by which a device''s newest heartbeats are read; null if it has none.';
--! EndIncluded partitions/newest_index.sql
--! Included partitions/is_settled.sql
create or replace function fleet.is_settled(p_table oid) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_constraint k where k.conrelid = p_table and k.conname = 'device_heartbeats_settled');
$$;

comment on function fleet.is_settled(oid) is
  'Whether a table has the constraint that refuses every new row, because the day is settled. The catalog decides, not '
  'hb_partitions.settled_at.';
--! EndIncluded partitions/is_settled.sql
--! Included partitions/bytes_of.sql
-- Asking for the size of a table locks it. Views and metrics must not wait until a day is settled, so then they say what was
-- measured last.
create or replace function fleet.bytes_of(p fleet.hb_partitions) returns bigint
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '20ms'
as $$
begin
  if p.state = 'dropped' then
    return 0;
  end if;
  return coalesce(pg_total_relation_size(fleet.table_of(p)), 0);
exception when lock_not_available then
  return coalesce(p.bytes_size, 0);
end
$$;

comment on function fleet.bytes_of(fleet.hb_partitions) is
  'The size on disk of a partition with its indexes, in bytes; 0 if it is dropped. While the table is locked against readers, the '
  'size that was measured last. Example: select partition_name, fleet.bytes_of(p) from fleet.hb_partitions p;';
--! EndIncluded partitions/bytes_of.sql
--! Included partitions/has_pages.sql
create or replace function fleet.has_pages(p_table oid) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '20ms'
as $$
begin
  return pg_relation_size(p_table) > 0;
exception when lock_not_available then
  return true;  -- nobody settles or rewrites an empty table
end
$$;

comment on function fleet.has_pages(oid) is
  'Whether a table has ever had a row. Does not wait while the table is locked against readers.';
--! EndIncluded partitions/has_pages.sql
--! Included partitions/close_partition.sql
-- `on conflict do nothing` without the dedupe key stores duplicates and says nothing. So a CHECK that no row can pass comes first:
-- it holds for every role, COPY and replication, and no setting disables it. NOT VALID: it is not checked for the rows that are
-- there, and the planner does not conclude from it that the table is empty.
create or replace function fleet.close_partition(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table oid;
  v_key oid;
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := fleet.table_of(v_partition);
  v_key := fleet.dedupe_index(v_table);
  if v_key is null or position(fleet.dedupe_key() in pg_get_indexdef(v_key)) = 0 then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s has no valid dedupe key, so it may have duplicates, and is not settled', p_partition),
      hint = 'See select * from fleet.check_partitions() where check_name = ''partition_indexes'';';
  end if;
  execute format('alter table %s add constraint device_heartbeats_settled check (false) not valid', v_table::regclass);
  execute format(
    'comment on constraint device_heartbeats_settled on %s is %L', v_table::regclass,
    'Refuses new rows, because the dedupe key was dropped. To write: select fleet.unsettle_partition(name);'
  );
  execute format('drop index %s', v_key::regclass);
  update fleet.hb_partitions
  set settled_at = clock_timestamp()
  where partition_name = p_partition;
end
$$;

comment on function fleet.close_partition(text) is
  'Closes a past partition: from then on it refuses every new row, and its dedupe key, which only inserts need, is dropped. '
  'fleet.unsettle_partition() opens it.';
--! EndIncluded partitions/close_partition.sql
--! Included partitions/unsettle_partition.sql
create or replace function fleet.unsettle_partition(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not fleet.unsettle_table(p_partition) then
    return false;
  end if;
  perform fleet.audit('partition.unsettled', 'partition:' || p_partition);
  return true;
end
$$;

comment on function fleet.unsettle_partition(text) is
  'Opens a settled partition for heartbeats: creates its dedupe key again, and then removes the constraint that refuses new rows. '
  'If somebody dropped the constraint, only the key is missing. Returns false if it takes heartbeats already. The next night '
  'settles it again if it is old enough. '
  'Example: select fleet.unsettle_partition(partition_name) from fleet.partition_health where settled_at is not null limit 1;';
--! EndIncluded partitions/unsettle_partition.sql
--! Included partitions/partition_health.view.sql
create or replace view fleet.partition_health as
select p.partition_name, p.range_start, p.range_end, p.state, p.step, p.row_count,
  fleet.bytes_of(p) as bytes_size,
  p.attempts, p.next_attempt_at, p.last_error, p.held_reason, p.lease_owner, p.lease_until, p.detached_at, p.proven_at,
  p.dropped_at, p.restored_at, p.archive_url, case when p.state <> 'dropped' then p.settled_at end as settled_at
from fleet.hb_partitions p
order by p.range_start desc;

comment on view fleet.partition_health is
  'Every partition that ever existed, newest first, with its state and its last error. '
  'Example: select * from fleet.partition_health where state = ''archive_failed'';';
--! EndIncluded partitions/partition_health.view.sql
--! Included partitions/storage_growth.view.sql
create or replace view fleet.storage_growth as
select (p.range_start at time zone 'UTC')::date as day, p.partition_name, p.state, p.row_count,
  fleet.bytes_of(p) as bytes_online,
  coalesce(p.archive_bytes, 0) as bytes_archived
from fleet.hb_partitions p
where p.range_start <= now()
order by p.range_start desc;

comment on view fleet.storage_growth is
  'Rows and bytes of each partition, by its first UTC day, online and in the archive, newest first. '
  'Example: select sum(bytes_online) from fleet.storage_growth;';
--! EndIncluded partitions/storage_growth.view.sql
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
    fleet.bytes_of(p),
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
--! Included partitions/settle_plan.sql
create or replace function fleet.settle_plan(p_now timestamptz default now())
returns table (
  partition_name text, range_start timestamptz, due_at timestamptz, row_count bigint, estimate interval, action text, reason text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with given as (
    -- An hour more than ingest accepts, for batches that wait to be written. Points in time are compared, as ingest does: a
    -- difference of times that is compared with a month counts 30 days.
    select s.settle, s.settle_max_wait, s.retention, least(s.max_late, s.retention) as late, interval '1 hour' as margin,
      -- The fastest of the last ten: one night on a busy machine must not make every later day look too large.
      coalesce(
        (
          select max(l.rows * 1000::double precision / l.duration_ms)
          from (
            select e.rows, e.duration_ms
            from fleet.events e
            where e.event = 'partition.settle' and e.rows >= 100000 and e.duration_ms > 0
              and p_now - e.at < interval '30 days'
            order by e.at desc
            limit 10
          ) l
        ),
        400000::double precision  -- measured on two shared cores
      ) as rows_per_second
    from fleet.settings s
    where fleet.not_in_future(p_now) is not null
  ),
  found as (
    select p.partition_name, p.range_start, p.range_end, p.settled_at, g.*, c.oid as relid, fleet.is_settled(c.oid) as is_settled,
      coalesce(p.row_count, greatest(c.reltuples, 0)::bigint) as row_count,
      -- To be retired instead: this night or as soon as its import is confirmed.
      p.state = 'active' and p.held_reason is null and p.range_end <= p_now - g.retention as is_leaving,
      exists (select from fleet.import_holds() h where h.since < p.range_end) as is_imported
    from fleet.hb_partitions p
    join pg_class c on c.oid = fleet.table_of(p) and c.relispartition
    cross join given g
    where p.state in ('active', 'restored')
      -- A partition without rows has nothing to sort, and its key is one page.
      and (p.settled_at is not null or c.relpages > 0 or fleet.has_pages(c.oid))
  ),
  judged as (
    select f.*, f.row_count / f.rows_per_second * interval '1 second' as estimate,
      case
        when f.settled_at is not null and not f.is_settled then 'unsettle'
        when f.settled_at is not null then case when f.range_end > p_now - f.late then 'unsettle' end
        when f.range_end > p_now - f.late - f.margin or f.is_leaving or f.is_imported then null
        when fleet.dedupe_index(f.relid) is null then 'blocked'
        when not f.settle then 'off'
        when f.row_count / f.rows_per_second * interval '1 second' > f.settle_max_wait then 'too_large'
        else 'settle'
      end as action
    from found f
  )
  select j.partition_name, j.range_start, j.range_end + j.late + j.margin, j.row_count, j.estimate, j.action,
    case j.action
      when 'unsettle' then case
        when j.is_settled then format('heartbeats of the last %s are accepted again', j.late)
        else 'its constraint device_heartbeats_settled is gone, so it takes rows and has no dedupe key'
      end
      when 'blocked' then 'it has no valid dedupe key, so it may have duplicates'
      when 'off' then 'settings.settle is false'
      when 'too_large' then format(
        'its readers would wait for about %s, longer than settings.settle_max_wait (%s)', date_trunc('second', j.estimate),
        j.settle_max_wait
      )
      when 'settle' then format(
        'no heartbeat can come for it; its readers wait for about %s s', greatest(1, ceil(extract(epoch from j.estimate)))
      )
    end
  from judged j
  where j.action is not null
  order by j.range_start desc;
$$;

comment on function fleet.settle_plan(timestamptz) is
  'What the next night or hour would do with the order of past partitions, newest first, and why: settle, unsettle (max_late '
  'was raised, or the constraint was dropped by hand), too_large, off or blocked. estimate is how long readers of that day '
  'would wait. Example: select * from fleet.settle_plan();';
--! EndIncluded partitions/settle_plan.sql
--! Included partitions/settle_partition.sql
create or replace function fleet.settle_partition(p_partition text, p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_was timestamptz := (select p.settled_at from fleet.hb_partitions p where p.partition_name = p_partition);
  v_rows bigint := fleet.settle_table(p_partition, p_now);
begin
  if v_was is null then
    perform fleet.audit('partition.settled', 'partition:' || p_partition, p_after => jsonb_build_object('rows', v_rows));
  end if;
  return v_rows;
end
$$;

comment on function fleet.settle_partition(text, timestamptz) is
  'Rewrites a past partition in the order of devices and time, drops its dedupe key, and closes it for new rows; returns its '
  'rows, or 0 if it was settled before. Readers of that day wait until it is done. Run by fleet.nightly(). '
  'Example: select partition_name, fleet.settle_partition(partition_name) from fleet.settle_plan() where action = ''settle'' limit 1;';
--! EndIncluded partitions/settle_partition.sql
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

  -- Only the catalog says whether a partition takes rows: it may have come back from a dump or from elsewhere. One that takes
  -- rows but has no key stays noted as settled until fleet.maintain() opens it. Ingest calls this, and must wait for no index.
  update fleet.hb_partitions p
  set settled_at = case when p.settled_at is null then now() end
  where p.state in ('active', 'restored') and p.relid is not null
    and (p.settled_at is not null) <> fleet.is_settled(p.relid)
    and (p.settled_at is null or fleet.dedupe_index(p.relid) is not null);

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
        -- The job fleet-freeze freezes it once, or marks its pages once it is settled. Vacuum against wraparound runs in any case.
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
--! Included ingest/replay_quarantine.sql
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
begin
  select r.stored, r.duplicate, r.remaining into stored, duplicate, remaining
  from fleet.replay_heartbeats(p_from, p_to, p_device_id) r;
  if stored + duplicate > 0 then
    perform fleet.audit(
      'quarantine.replayed', coalesce('device:' || p_device_id, 'quarantine:all'),
      p_after => jsonb_build_object(
        'from', p_from, 'to', p_to, 'stored', stored, 'duplicate', duplicate, 'remaining', remaining
      )
    );
  end if;
end
$$;

comment on function fleet.replay_quarantine(timestamptz, timestamptz, bigint) is
  'Stores quarantined heartbeats, selected by ts, if their partition now exists (created or restored) and their lateness is now '
  'allowed; opens settled days for them. Readers of a day that it opens wait until the replay has ended, unless it was opened '
  'before with fleet.unsettle_partition(). Returns how many were stored, how many were duplicates, and how many remain. '
  'Example: select * from fleet.replay_quarantine(current_date - 3, current_date);';
--! EndIncluded ingest/replay_quarantine.sql
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
  v_settled text;
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
    -- The night does not settle them again before the import is confirmed; see fleet.import_holds().
    select p.partition_name into v_settled
    from fleet.hb_partitions p
    where p.settled_at is not null and p.state in ('active', 'restored')
      and exists (
        select from fleet.import_days d
        where d.source = a.source and d.rows_found > 0 and d.day >= p.range_start::date and d.day < p.range_end::date
      )
    order by p.range_start
    limit 1;
    if v_settled is null then
      return false;
    end if;
    perform fleet.unsettle_table(v_settled);
    return true;
  end if;
  perform fleet.add_partitions(v_missing, least(v_missing + c_days_at_once - 1, v_last));
  update fleet.imports f
  set step_done = v_missing - v_first
  where f.source = a.source;
  return true;
end
$$;

comment on function fleet.prepare_partitions(fleet.imports) is
  'Creates the next partitions for the days of a table that is being imported, from its first day to its last, and opens settled ones; '
  'false when nothing is left to do. It creates none for days in the archive, which fleet.request_restore() brings back.';
--! EndIncluded import/prepare_partitions.sql
--! Included archive/finish_restore.sql
create or replace function fleet.finish_restore(p_partition text, p_worker text, p_rows_sha256 text default null) returns void
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
  if v_partition.rows_sha256 is null then
    select c.row_count, c.min_ts, c.max_ts, format('content checksum %s', c.content_checksum) as found,
      format('content checksum %s', v_partition.content_checksum) as expected
    into v_got
    from fleet.content_checksum(v_table, v_partition.columns, v_partition.checksum_version) c;
  else
    -- The archiver hashed the table as CSV. Where Postgres itself hashed the rows when they were archived, it does so again.
    select c.row_count, c.min_ts, c.max_ts,
      format('rows_sha256 %s, row hash %s', coalesce(p_rows_sha256, 'not computed'), c.rows_hash) as found,
      format('rows_sha256 %s, row hash %s', v_partition.rows_sha256, coalesce(v_partition.rows_hash, c.rows_hash)) as expected
    into v_got
    from fleet.count_rows(v_table) c;
  end if;
  if (v_got.row_count, v_got.found, v_got.min_ts, v_got.max_ts) is distinct from (
    v_partition.row_count, v_got.expected, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the restored rows of %s differ from what was archived; the table is not attached', p_partition),
      detail = format(
        'rows %s, restored %s; %s, restored %s', v_partition.row_count, v_got.row_count, v_got.expected, v_got.found
      ),
      hint = case
        when p_rows_sha256 = v_partition.rows_sha256 then
          'The rows have the SHA-256 of the archive, but not the hash that Postgres computed. See "Bring '
          'archived days back" in RUNBOOK.md.'
        else 'Check the archive: npm run archive -- verify'
      end;
  end if;

  v_left_out := fleet.reshape_restored(v_table, v_partition.columns, v_partition.columns_at);

  execute format('alter table %s rename to %I', v_table, p_partition);
  update fleet.hb_partitions set relid = v_table, settled_at = null where partition_name = p_partition;
  perform fleet.bind_range(p_partition);
  perform partman.inherit_template_properties('fleet.device_heartbeats', 'fleet', p_partition);
  -- The rows lie in the order of the archive. The key has proven that there is no duplicate.
  if (
    select s.settle and v_partition.range_end <= now() - least(s.max_late, s.retention) - interval '1 hour' from fleet.settings s
  ) then
    perform fleet.close_partition(p_partition);
  end if;
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

comment on function fleet.finish_restore(text, text, text) is
  'Compares the restored rows with the archive, by the archive''s own columns. Then changes the table to today''s columns, '
  'indexes it, attaches it, and sets state restored. It is settled if no heartbeat can come for it.';
--! EndIncluded archive/finish_restore.sql
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
      v_count := fleet.roll_up_day(p_day, p_now);
    when 'rebuild' then
      v_count := fleet.roll_up_day(p_day, p_now, p_late_only => true);
    when 'retire' then
      v_count := fleet.retire_partition(p_partition, p_now);
    when 'settle' then
      v_count := fleet.settle_table(p_partition, p_now);
    when 'unsettle' then
      v_count := fleet.unsettle_table(p_partition)::integer;
    when 'replay' then
      select r.stored into v_count
      from fleet.hb_partitions p
      cross join lateral fleet.replay_heartbeats(p.range_start, p.range_end) r
      where p.partition_name = p_partition;
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
    -- each day or partition that it finds. Days are rolled up before their heartbeats are retired. Settling may take minutes, so the
    -- archiver is woken before it; what VACUUM has to do is known after it.
    when 'nightly' then array[
      'premake', 'refresh_sizes', 'plan_roll_up', 'plan_retire', 'tune_autovacuum', 'prune', 'note_storage',
      'retry_failed_archives', 'wake_archiver', 'plan_settle', 'schedule_vacuum'
    ]
    when 'maintain' then array['premake', 'plan_unsettle', 'plan_rebuild']
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
    perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => (fleet.current_actor()).actor);
    if not fleet.is_scheduled_run() then
      perform fleet.audit(
        p_kind || '.started', 'run:' || v_run_id,
        p_after => case when p_retention is not null then jsonb_build_object('retention', p_retention) end
      );
    end if;
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
      union all
      -- The heartbeats that were quarantined since max_late was raised. Readers do not wait for them: it is another transaction.
      select u.step, r.partition_name, null, row_number() over (order by r.range_start, u.nth)
      from fleet.settle_plan(v_next.as_of) r
      cross join (values (1, 'unsettle'), (2, 'replay')) as u (nth, step)
      where v_next.step = 'plan_unsettle' and r.action = 'unsettle'
      union all
      -- One partition and then the plan again, as long as the budget lasts. Each is tried once in a night.
      select u.step, case u.step when 'settle' then n.partition_name end, null, u.nth
      from (
        select r.partition_name
        from fleet.settle_plan(v_next.as_of) r
        where v_next.step = 'plan_settle' and r.action = 'settle'
          and not exists (
            select from fleet.events e
            where e.run_id = p_run_id and e.event = 'maintenance.settle' and e.partition_name = r.partition_name
          )
          and (
            select coalesce(sum(e.duration_ms), 0)
            from fleet.events e
            where e.run_id = p_run_id and e.event = 'maintenance.settle'
          ) < (select extract(epoch from s.settle_budget) * 1000 from fleet.settings s)
        order by r.range_start desc
        limit 1
      ) n
      cross join (values (1, 'settle'), (2, 'plan_settle')) as u (nth, step)
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
--! Included jobs/nightly_plan.sql
create or replace function fleet.nightly_plan(p_retention interval default null, p_now timestamptz default now())
returns table (step text, partition_name text, detail text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
  return query
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
    )
    union all
    (
      select 'settle', r.partition_name, r.reason
      from fleet.settle_plan(p_now) r
      where r.action = 'settle'
      order by r.range_start desc
    );
end
$$;

comment on function fleet.nightly_plan(interval, timestamptz) is
  'The dry run of fleet.nightly(): what it would create, roll up, retire, leave to the archiver and settle, the last within '
  'settings.settle_budget. Changes nothing. Example: '
  'select * from fleet.nightly_plan(''60 days'');';
--! EndIncluded jobs/nightly_plan.sql
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
  'retires partitions past the retention, sets autovacuum by age, prunes, wakes the archiver, and settles days for which no '
  'heartbeat can come any more. Returns its run_id for fleet.run_steps(). For a dry run: select * from fleet.nightly_plan(). '
  'Example: call fleet.nightly();';
--! EndIncluded jobs/nightly.sql
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
  'Creates partitions ahead, opens settled days if max_late was raised, recounts the availability of devices with late '
  'heartbeats, and runs fleet.nightly() if a night was missed. Run hourly by pg_cron; safe at any time. '
  'Example: call fleet.maintain();';
--! EndIncluded jobs/maintain.sql
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
--! EndIncluded jobs/job_definitions.sql
--! Included status/device_day.sql
-- The bounds are variables, so that the planner opens, and locks, only the partitions of that day. With an expression in their
-- place it locks all of them, and waits for one that is being settled.
create or replace function fleet.device_day(p_device_id bigint, p_now timestamptz default now())
returns table (span_start timestamptz, beats integer, unity_down integer, battery_pct numeric, signal_dbm numeric)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  v_last timestamptz := date_bin('10 minutes', fleet.not_in_future(p_now), '2000-01-01 00:00:00+00');
  v_first timestamptz := v_last - interval '23 hours 50 minutes';
begin
  return query
    with spans as (
      select generate_series(v_first, v_last, interval '10 minutes') as span
    ),
    beats as (
      select date_bin('10 minutes', h.ts, '2000-01-01 00:00:00+00') as span, count(*) as beats,
        count(*) filter (where not h.unity_running) as unity_down, avg(h.battery_pct) as battery_pct,
        avg(h.signal_dbm) as signal_dbm
      from fleet.device_heartbeats h
      where h.device_id = p_device_id
        and h.ts >= v_first and h.ts <= p_now
      group by 1
    )
    select s.span, coalesce(b.beats, 0)::integer, coalesce(b.unity_down, 0)::integer, round(b.battery_pct, 1),
      round(b.signal_dbm, 1)
    from spans s
    left join beats b using (span)
    order by s.span;
end
$$;

comment on function fleet.device_day(bigint, timestamptz) is
  'The last 24 hours of a device in spans of ten minutes, oldest first: the number of heartbeats, how many of them with Unity '
  'down, and the means of battery and signal (null without a heartbeat). '
  'Example: select * from fleet.device_day(42) where beats = 0;';
--! EndIncluded status/device_day.sql
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
    -- CASE, so that no other table is opened: one that is being settled is locked.
    and case when a.range_end > p_now - interval '7 days' then
      pg_relation_size(a.relid) > 1 << 20
      and c.relallvisible * current_setting('block_size')::bigint < pg_relation_size(a.relid) / 2
    end;
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
--! Included archive/rows_proof.sql
create or replace function fleet.rows_proof(p_rows_sha256 text, p_content_checksum numeric) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce('rows_sha256 ' || p_rows_sha256, 'content checksum ' || p_content_checksum, 'no checksum of the rows');
$$;

comment on function fleet.rows_proof(text, numeric) is
  'The checksum of the rows of an archive, as messages name it: manifest formats 1 and 2 have a content checksum, later ones '
  'rows_sha256.';
--! EndIncluded archive/rows_proof.sql
--! Included archive/count_rows.sql
create or replace function fleet.count_rows(
  p_table regclass,
  out row_count bigint,
  out rows_hash numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'select count(*), coalesce(sum(hash_record_extended(t, 0)), 0), min(t.ts), max(t.ts) from only %s t', p_table
  ) into row_count, rows_hash, min_ts, max_ts;
end
$$;

comment on function fleet.count_rows(regclass) is
  'Returns the number of rows of a partition, a sum of 64-bit hashes of its rows, and the oldest and newest ts. Two counts of one '
  'table show quickly whether a row has changed. The hash depends on the columns and their order, and on the byte order of the '
  'machine. Example: select p.partition_name, c.* from fleet.partition_health p cross join '
  'fleet.count_rows(format(''fleet_detached.%I'', p.partition_name)::regclass) c where p.state = ''detached'';';
--! EndIncluded archive/count_rows.sql
--! Included archive/lock_retired.sql
-- What is copied and what is counted must be the same rows. Without the lock a superuser could change a row between the two, and
-- the archive would hold the old one.
create or replace function fleet.lock_retired(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '0'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
begin
  -- Without a lock on this row, in which the archiver renews its lease.
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s has no table that %s may archive', p_partition, p_worker),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  -- It waits for a VACUUM as long as that takes. LOCK TABLE requires the right to write, which nobody has here. This statement
  -- changes nothing, and blocks writers, but not readers, until the end of the transaction.
  execute format('alter table %s disable trigger user', v_table);
end
$$;

comment on function fleet.lock_retired(text, text) is
  'Archiving: keeps writers out of a retired table until the end of the transaction, so that the rows that are copied are those '
  'that fleet.count_retired() counts.';
--! EndIncluded archive/lock_retired.sql
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
    rows_sha256 = p.counted ->> 'rows_sha256', content_checksum = null,
    min_ts = (p.counted ->> 'min_ts')::timestamptz, max_ts = (p.counted ->> 'max_ts')::timestamptz,
    checksum_sha256 = null, archive_url = null, archive_bytes = null, proven_at = null,
    columns = p.counted -> 'columns', columns_at = coalesce(p.detached_at, clock_timestamp()),
    checksum_version = null, manifest_format = null,
    rows_hash = (p.counted ->> 'rows_hash')::numeric, counted = null
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.record_export(text, text) is
  'Archiving, step exported: from here on the archive has to match what fleet.count_retired() counted. What was recorded of an '
  'earlier archive of the day is cleared.';
--! EndIncluded archive/record_export.sql
--! Included archive/record_upload.sql
create or replace function fleet.record_upload(
  p_partition text,
  p_worker text,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_manifest_format integer default 1
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
    manifest_format = p_manifest_format
  where partition_name = p_partition;
  perform fleet.increment_counter('archive_bytes_pushed_total', p_archive_bytes);
end
$$;

comment on function fleet.record_upload(text, text, text, text, bigint, integer) is
  'Archiving, step uploaded: records where the Parquet file is, its SHA-256 and size, and the format of its manifest.';
--! EndIncluded archive/record_upload.sql
--! Included archive/record_proof.sql
create or replace function fleet.record_proof(
  p_partition text,
  p_worker text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_rows_sha256 text default null
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
  if (p_checksum_sha256, p_rows_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.rows_sha256, v_partition.content_checksum, v_partition.row_count,
    v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the archive of %s, read back, differs from its rows; the partition is kept', p_partition),
      detail = format(
        'sha256 %s, read back %s; %s, read back %s; rows %s, read back %s; from %s to %s, read back %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256,
        fleet.rows_proof(v_partition.rows_sha256, v_partition.content_checksum),
        fleet.rows_proof(p_rows_sha256, p_content_checksum),
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

comment on function fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz, text) is
  'Archiving, step proven: compares what was read back from the store with what was exported. Sets state archived only if '
  'everything is equal. p_content_checksum is for archives of manifest formats 1 and 2, which have no rows_sha256.';
--! EndIncluded archive/record_proof.sql
--! Included archive/confirm_archive.sql
-- The archiver gives the first proof. If settings.proofs_needed is 2, nothing is dropped on the archiver's word alone.
create or replace function fleet.confirm_archive(
  p_partition text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_rows_sha256 text default null,
  p_table_sha256 text default null
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
  if (p_checksum_sha256, p_rows_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.rows_sha256, v_partition.content_checksum, v_partition.row_count,
    v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the archive of %s, as %s read it, differs from what was archived; the partition is kept', p_partition, session_user
      ),
      detail = format(
        'sha256 %s, read %s; %s, read %s; rows %s, read %s; from %s to %s, read %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256,
        fleet.rows_proof(v_partition.rows_sha256, v_partition.content_checksum),
        fleet.rows_proof(p_rows_sha256, p_content_checksum),
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = format(
        'Keep the partition until this is resolved: select fleet.hold_partition(%L, ''its archive differs'');', p_partition
      );
  end if;
  -- Postgres computed the content checksum of older archives itself. rows_sha256 is what the archiver said, so the second login
  -- has to compute it from the table, too.
  if v_partition.rows_sha256 is not null and p_table_sha256 is distinct from v_partition.rows_sha256
    and (p_table_sha256 is not null or fleet.table_of(v_partition) is not null) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the table of %s, as %s read it, differs from its archive; the partition is kept', p_partition, session_user
      ),
      detail = format('rows_sha256 of the archive %s, of the table %s', p_rows_sha256, coalesce(p_table_sha256, 'not read')),
      hint = format(
        'Either the table was changed after the export, or the archiver cannot be trusted. Keep the partition until this is '
        'resolved: select fleet.hold_partition(%L, ''its archive differs'');', p_partition
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

comment on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz, text, text) is
  'Records that a second login read the archive back and found these rows, and the same in the table (p_table_sha256). Returns '
  'false if it was already confirmed. Required before a drop if settings.proofs_needed is 2. Used by: npm run archive -- confirm.';
--! EndIncluded archive/confirm_archive.sql
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
      'by %s: %s. Dropped: %s rows (%s). Archive: %s rows (%s; %s), %s',
      (fleet.current_actor()).actor, p_reason, v_found.row_count, v_found.in_table, v_partition.row_count, v_found.in_archive,
      fleet.rows_proof(v_partition.rows_sha256, v_partition.content_checksum), v_partition.archive_url
    )
  );
  perform fleet.audit(
    'partition.archive_accepted', 'partition:' || p_partition,
    jsonb_build_object('rows', v_found.row_count), jsonb_build_object('rows', v_partition.row_count, 'reason', p_reason)
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
  p_manifest_format integer default 1,
  p_rows_sha256 text default null
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
  if v_known.checksum_sha256 = p_checksum_sha256 and v_known.archive_url = p_archive_url
    and not (v_known.state = 'dropped' and v_known.row_count = 0 and p_row_count > 0) then  -- fleet.forget_archive()
    return false;
  end if;

  -- A new database has empty partitions for the days within its retention.
  if v_known.partition_name = p_partition and v_known.state = 'active' and fleet.table_of(v_known) is not null
    and p_range_end <= now()
    and (v_known.range_start, v_known.range_end) = (p_range_start, p_range_end) then
    v_table := fleet.table_of(v_known);
    if not fleet.is_distributed() then
      -- Takes the same lock as LOCK TABLE, which would require the right to write.
      execute format('alter table %s disable row level security', v_table);
    end if;
    execute format('select exists (select 1 from %s)', v_table) into v_has_rows;
    if not v_has_rows and fleet.is_distributed() then
      -- Citus lets no second role, here that of the guard, read a table that this transaction has locked.
      raise exception using
        errcode = 'FL409',
        message = format(
          'the archive of %s is not registered: its day is online and empty, and a distributed store cannot exchange it', p_partition
        ),
        hint = 'Register archives before you distribute a store; later, when the retention of their days has ended.';
    end if;
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
    archive_url, archive_bytes, archived_at, proven_at, dropped_at, columns, columns_at, checksum_version, manifest_format,
    rows_sha256
  ) values (
    p_partition, p_range_start, p_range_end, 'dropped', 'proven', p_row_count, 0, p_min_ts, p_max_ts, p_checksum_sha256,
    p_content_checksum, p_archive_url, p_archive_bytes, now(), now(), now(), p_columns, p_columns_at, p_checksum_version,
    p_manifest_format, p_rows_sha256
  )
  on conflict (partition_name) do update
    set state = excluded.state, step = excluded.step, row_count = excluded.row_count, min_ts = excluded.min_ts,
      max_ts = excluded.max_ts, checksum_sha256 = excluded.checksum_sha256, content_checksum = excluded.content_checksum,
      archive_url = excluded.archive_url, archive_bytes = excluded.archive_bytes, archived_at = excluded.archived_at,
      proven_at = excluded.proven_at, is_proven_empty = false, last_error = null,
      columns = excluded.columns, columns_at = excluded.columns_at, checksum_version = excluded.checksum_version,
      manifest_format = excluded.manifest_format, rows_sha256 = excluded.rows_sha256, rows_hash = null;
  perform fleet.reopen_erasures(p_partition);
  perform fleet.record_event('partition.register', p_partition, p_row_count, p_detail => p_archive_url);
  return true;
end
$$;

comment on function fleet.register_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer, text
) is
  'Registers an archive in a database that did not write it, after the archiver has read it back and proven it. Returns false '
  'if it was already registered. Used by: npm run archive -- register.';
--! EndIncluded archive/register_archive.sql
--! Included archive/archives.view.sql
create or replace view fleet.archives as
select p.partition_name, p.range_start, p.range_end, p.state, p.row_count, p.min_ts, p.max_ts, p.archive_bytes,
  p.checksum_sha256, p.content_checksum, p.archive_url, p.proven_at,
  p.columns, p.checksum_version, p.manifest_format, p.confirmed_at, p.confirmed_by, p.rows_sha256
from fleet.hb_partitions p
where p.proven_at is not null and p.archive_url is not null
order by p.range_start;

comment on view fleet.archives is
  'Every proven archive: date range, rows, checksums, location, columns, and when it was proven and confirmed. '
  'Example: select * from fleet.archives where range_start >= now() - interval ''1 year'';';
--! EndIncluded archive/archives.view.sql
--! Included archive/claim_restore.sql
create or replace function fleet.claim_restore(p_worker text, p_lease interval default '5 minutes')
returns table (
  request_id bigint, partition_name text, range_start timestamptz, range_end timestamptz, archive_url text,
  checksum_sha256 text, rows_sha256 text, content_checksum numeric, row_count bigint
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
    -- The archive still holds a device that is being erased. The day is restored without it, afterwards.
    and not exists (
      select from fleet.erasure_items e where e.partition_name = i.partition_name and e.archive_at is null
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
    select v_request_id, p.partition_name, p.range_start, p.range_end, p.archive_url, p.checksum_sha256, p.rows_sha256,
      p.content_checksum, p.row_count
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_restore(text, interval) is
  'Gives this archiver a lease on the next partition that is to be restored. Returns no row if there is none.';
--! EndIncluded archive/claim_restore.sql
--! Included archive/claim_partition.sql
create or replace function fleet.claim_partition(p_worker text, p_lease interval default '5 minutes')
returns table (
  partition_name text, relid oid, table_name text, range_start timestamptz, range_end timestamptz, state text, step text,
  attempts integer, row_count bigint, rows_sha256 text, content_checksum numeric, checksum_sha256 text,
  archive_url text, archive_bytes bigint, min_ts timestamptz, max_ts timestamptz
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
    -- An earlier archive loses the devices that are being erased before another one is made.
    and not (
      p.proven_at is not null and p.archive_url is not null
      and exists (select from fleet.erasure_items i where i.partition_name = p.partition_name and i.archive_at is null)
    )
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
      p.state, p.step, p.attempts, p.row_count, p.rows_sha256, p.content_checksum, p.checksum_sha256, p.archive_url,
      p.archive_bytes, p.min_ts, p.max_ts
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_partition(text, interval) is
  'Gives this archiver a lease on the oldest partition that is waiting to be archived or dropped. Returns no row if there is '
  'none.';
--! EndIncluded archive/claim_partition.sql
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
    'revoke all on fleet_detached.%I '
    'from public, fleet_owner, fleet_server, fleet_archiver, fleet_verifier, fleet_reader, fleet_dba',
    p_partition
  );
  execute format(
    'grant select on fleet_detached.%I to fleet_owner, fleet_archiver, fleet_verifier, fleet_dba, fleet_reader', p_partition
  );
  -- For VACUUM. Before PostgreSQL 17 only the owner may run it, in the job fleet-freeze. Since 17 even the owner needs the right
  -- MAINTAIN, which was revoked above with the others.
  perform fleet.grant_maintain();
end
$$;

comment on function fleet.make_read_only(text) is
  'Lets the archiver, the verifier, the DBA and readers read a retired table, and lets nobody write to it.';
--! EndIncluded partitions/make_read_only.sql
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

  if v_found.differs then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s differs from its archive and is not dropped: it has %s rows and its archive %s (%s and %s)',
        p_partition, v_found.row_count, coalesce(v_partition.row_count, 0), v_found.in_table, v_found.in_archive
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
--! Included partitions/remove_duplicates.sql
create or replace function fleet.remove_duplicates(p_partition text) returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select format(
    'delete from fleet.%1$I a using fleet.%1$I b where a.device_id = b.device_id '
    'and fleet.heartbeat_bucket(a.ts) = fleet.heartbeat_bucket(b.ts) '
    'and (a.received_at, a.ctid) > (b.received_at, b.ctid);',
    p_partition
  );
$$;

comment on function fleet.remove_duplicates(text) is
  'The statement, for a superuser, that deletes the duplicates of a partition that had no dedupe key. Of each it keeps the one '
  'that arrived first.';
--! EndIncluded partitions/remove_duplicates.sql

--! Included erase/lockers_of_devices.sql
-- Like CREATE INDEX CONCURRENTLY: a transaction that read that the device is enrolled, or that is writing a row of it, holds a
-- lock on the table until it ends. Whoever takes one later sees that the device is gone.
create or replace function fleet.lockers_of_devices(p_among text[] default null) returns table (transaction text, pid integer)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select l.virtualtransaction, min(l.pid)
  from pg_locks l
  where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (
      l.relation = 'fleet.devices'::regclass
      or l.mode = 'RowExclusiveLock' and l.relation in (
        select t from fleet.tables_of_devices() t union all select 'fleet.device_heartbeats'::regclass
      )
    )
    and (p_among is null or l.virtualtransaction = any (p_among))
  group by l.virtualtransaction;
$$;

comment on function fleet.lockers_of_devices(text[]) is
  'The transactions that may still write rows of a device that was deleted a moment ago, because they have read fleet.devices or '
  'write to a table with rows of devices. With p_among: which of those have not ended.';
--! EndIncluded erase/lockers_of_devices.sql
--! Included erase/add_erasure_items.sql
create or replace function fleet.add_erasure_items(p_erasure_id bigint, p_partition text default null) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.erasure_items as i (erasure_id, partition_name)
  select p_erasure_id, p.partition_name
  from fleet.hb_partitions p
  where (p_partition is null or p.partition_name = p_partition)
    and (p.state <> 'dropped' or p.archive_url is not null)
  order by p.partition_name
  on conflict on constraint erasure_items_pkey do update
    set online_at = null,
      -- An archive that was made or registered since then has to be read again. What is in progress goes on.
      (archive_at, recorded_at, confirmed_at) = (
        select
          case when i.archive_at >= p.proven_at then i.archive_at end,
          case when i.archive_at is null or i.archive_at >= p.proven_at then i.recorded_at end,
          case when i.archive_at is null or i.archive_at >= p.proven_at then i.confirmed_at end
        from fleet.hb_partitions p
        where p.partition_name = i.partition_name
      ),
      attempts = 0, next_attempt_at = null, last_error = null;
$$;

comment on function fleet.add_erasure_items(bigint, text) is
  'Notes which partitions and archives an erasure has to go through: all, or the one that is given. What was done before and has '
  'not changed stays done.';
--! EndIncluded erase/add_erasure_items.sql
--! Included erase/reopen_erasures.sql
create or replace function fleet.reopen_erasures(p_partition text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint;
  v_count bigint := 0;
begin
  for v_id in
    update fleet.erasures e
    set state = 'running', finished_at = null
    returning e.erasure_id
  loop
    perform fleet.add_erasure_items(v_id, p_partition);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.reopen_erasures(text) is
  'Lets every erasure go through one more archive, because it was registered after them and may hold their devices. Returns how '
  'many erasures there are. Called by fleet.register_archive().';
--! EndIncluded erase/reopen_erasures.sql
--! Included erase/erase_device.sql
-- One transaction that is short whatever the device has sent: it revokes the device by deleting it, with all that is not a
-- heartbeat. Heartbeats are deleted afterwards, one partition a transaction, by fleet.run_erasures(), and in the archive by the
-- archiver.
create or replace function fleet.erase_device(p_device_id bigint, p_reason text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_erasure fleet.erasures;
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_has_rows boolean;
  v_is_known boolean;
  v_rows bigint;
begin
  if p_device_id is null or p_reason is null or btrim(p_reason) = '' or length(p_reason) > 500 then
    raise exception using
      errcode = 'FL422',
      message = format(
        'device %s is not erased: %s', coalesce(p_device_id::text, 'null'),
        case when p_device_id is null then 'device_id is null' else 'the reason must have 1 to 500 characters' end
      ),
      hint = 'Give a device and a reason that names no person: select fleet.erase_device(42, ''request 4711'');';
  end if;
  -- One call at a time for a device; the others find that it is being erased.
  perform from fleet.devices d where d.device_id = p_device_id for update;
  v_is_known := found;
  select * into v_erasure from fleet.erasures e where e.device_id = p_device_id for update;
  if v_erasure.state = 'running' and not v_is_known then
    return v_erasure.erasure_id;
  end if;

  for v_partition in
    select p.* from fleet.hb_partitions p where p.held_reason is not null order by p.range_start
  loop
    v_table := fleet.table_of(v_partition);
    continue when v_table is null;
    execute format('select exists (select 1 from only %s where device_id = $1)', v_table) into v_has_rows using p_device_id;
    if v_has_rows then
      raise exception using
        errcode = 'FL002',
        message = format(
          'device %s is not erased: partition %s has heartbeats of it and is held (%s) by %s; nothing was deleted',
          p_device_id, v_partition.partition_name, v_partition.held_reason, v_partition.held_by
        ),
        hint = format('When the hold may end: select fleet.release_partition(%L);', v_partition.partition_name);
    end if;
  end loop;

  if not v_is_known and v_erasure.erasure_id is null then
    -- Ids are never used twice. A device that somebody deleted before may still have heartbeats, also in the archive.
    select p_device_id between 1 and s.last_value and (s.is_called or p_device_id < s.last_value) into v_is_known
    from fleet.devices_device_id_seq s;
    if not v_is_known then
      select exists (select 1 from fleet.device_heartbeats h where h.device_id = p_device_id) into v_is_known;
    end if;
    if not v_is_known then
      raise exception using
        errcode = 'FL404',
        message = format('there is no device %s and there never was one; nothing was erased', p_device_id),
        hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
    end if;
  end if;

  -- Its token ends with the commit. The trigger on fleet.devices deletes what else is known of the device; the second call is for
  -- a device that is not in fleet.devices any more.
  select count(*) into v_rows
  from fleet.devices d where d.device_id = p_device_id;
  v_rows := v_rows + fleet.delete_device_rows(array[p_device_id]);
  delete from fleet.devices d where d.device_id = p_device_id;
  -- These events say who changed the device and when. Its id and its alias go.
  update fleet.events e
  set detail = 'a device that was erased; by ' || coalesce(substring(e.detail from '.*; by (.*)$'), 'unknown')
  where e.event in ('device.revoked', 'device.renamed', 'device.moved', 'device.token_renewed')
    and e.detail ~ format('^device %s\D', p_device_id);

  insert into fleet.erasures as e (device_id, reason, rows_other)
  values (p_device_id, p_reason, v_rows)
  on conflict on constraint erasures_device_id_key do update
    set state = 'running', waits_for = null, finished_at = null, last_error = null,
      rows_other = e.rows_other + excluded.rows_other
  returning * into v_erasure;
  perform fleet.add_erasure_items(v_erasure.erasure_id);
  perform fleet.record_event(
    'device.erase', p_rows => v_rows,
    p_detail => format('erasure %s; by %s: %s', v_erasure.erasure_id, (fleet.current_actor()).actor, p_reason)
  );
  -- Who did what with the device stays, with its number. What the rows say about it goes; the trigger keep_audit_log allows that
  -- only now that the erasure is recorded.
  with named as (
    update fleet.audit_log l
    set before = null, after = null
    where l.target = 'device:' || p_device_id and (l.before is not null or l.after is not null)
    returning l.at
  ),
  mapped as (
    update fleet.audit_log l
    set before = null, after = null
    where l.action in ('import_device.mapped', 'import_device.changed', 'import_device.unmapped')
      and p_device_id::text in (l.before ->> 'device_id', l.after ->> 'device_id')
    returning l.at
  )
  -- These months are archived again.
  update fleet.audit_archives a
  set wanted = a.wanted + 1
  where a.month in (select date_trunc('month', n.at)::date from (table named union all table mapped) n);
  perform fleet.audit(
    'erasure.requested', 'erasure:' || v_erasure.erasure_id, p_after => jsonb_build_object('reason', p_reason)
  );
  -- An archive whose day is not online can be read at once.
  perform pg_notify('fleet_archiver', 'erase');
  return v_erasure.erasure_id;
end
$$;

comment on function fleet.erase_device(bigint, text) is
  'Erases a device and every heartbeat of it, online and in the archive, and returns the number of the erasure. With the commit '
  'the device is gone and its token refused; fleet.run_erasures() and the archiver then delete its heartbeats, which '
  'fleet.erasure_progress shows. Nothing brings them back. Refused while a partition with heartbeats of the device is held. A '
  'second call for a device that is erased looks again, for example after an old archive was registered. The reason is kept, so '
  'it should name no person. Example: select fleet.erase_device(42, ''request 4711'');';
--! EndIncluded erase/erase_device.sql
--! Included erase/retry_erasure.sql
create or replace function fleet.retry_erasure(p_erasure_id bigint) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  if not exists (select from fleet.erasures e where e.erasure_id = p_erasure_id) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no erasure %s', coalesce(p_erasure_id::text, 'null')),
      hint = 'The erasures are in: select * from fleet.erasure_progress;';
  end if;
  update fleet.erasure_items i
  set next_attempt_at = null, attempts = 0
  where i.erasure_id = p_erasure_id and (i.online_at is null or i.archive_at is null);
  get diagnostics v_count = row_count;
  if v_count > 0 then
    perform fleet.audit('erasure.retried', 'erasure:' || p_erasure_id, p_after => jsonb_build_object('left', v_count));
  end if;
  perform pg_notify('fleet_archiver', 'erase');
  return v_count;
end
$$;

comment on function fleet.retry_erasure(bigint) is
  'Lets an erasure try again at once what failed; returns how many partitions and archives are left. '
  'Example: select fleet.retry_erasure(erasure_id) from fleet.erasure_progress where last_error is not null;';
--! EndIncluded erase/retry_erasure.sql
--! Included erase/delete_heartbeats.sql
-- Nobody has the right to delete heartbeats, not even the owner. This function takes it for one statement: other sessions never
-- see the grant, because it is revoked in the same transaction.
create or replace function fleet.delete_heartbeats(p_partition text, p_device_ids bigint[])
returns table (device_id bigint, deleted bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_has_rows boolean;
begin
  if exists (
    select from unnest(p_device_ids) d (device_id)
    where not exists (select from fleet.erasures e where e.device_id = d.device_id and e.state = 'running')
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('no erasure covers the devices %s; nothing was deleted', array_to_string(p_device_ids, ', ')),
      hint = 'Heartbeats are deleted only for an erasure: select fleet.erase_device(42, ''why'');';
  end if;
  v_partition := fleet.get_partition(p_partition);
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    return;
  end if;
  execute format('select exists (select 1 from only %s where device_id = any ($1))', v_table) into v_has_rows using p_device_ids;
  if not v_has_rows then
    return;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s); nothing was deleted', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  execute format('grant delete on %s to fleet_owner', v_table);
  for device_id, deleted in
    execute format(
      'with gone as (delete from only %s where device_id = any ($1) returning device_id) '
      'select g.device_id, count(*) from gone g group by g.device_id',
      v_table
    ) using p_device_ids
  loop
    return next;
  end loop;
  execute format('revoke delete on %s from fleet_owner', v_table);
  -- A cold partition has no autovacuum. The job fleet-freeze removes the dead rows from its pages.
  update fleet.hb_partitions
  set cold_xid = pg_current_xact_id()::xid
  where partition_name = p_partition and (cold_xid is not null or state not in ('active', 'restored'));
end
$$;

comment on function fleet.delete_heartbeats(text, bigint[]) is
  'Deletes the heartbeats of devices from the table of one partition, attached, settled or retired, and returns how many of '
  'each. Only for devices of an erasure. Called by fleet.erase_step() and fleet.record_erasure().';
--! EndIncluded erase/delete_heartbeats.sql
--! Included erase/erasure_progress.view.sql
create or replace view fleet.erasure_progress as
select e.erasure_id, e.device_id, e.state, e.requested_at, e.requested_by, e.reason, e.rows_other, i.rows_online,
  i.rows_archived, i.partitions_left, i.archives_left, i.archives_rewritten, i.next_archives, e.finished_at,
  coalesce(e.last_error, i.last_error) as last_error
from fleet.erasures e
cross join lateral (
  select coalesce(sum(t.rows_online), 0)::bigint as rows_online, coalesce(sum(t.rows_archived), 0)::bigint as rows_archived,
    count(*) filter (where t.online_at is null) as partitions_left,
    count(*) filter (where t.archive_at is null and p.archive_url is not null) as archives_left,
    count(*) filter (where t.rows_archived > 0) as archives_rewritten,
    (array_agg(p.archive_url order by p.range_start) filter (where t.archive_at is null and p.archive_url is not null))[1:10]
      as next_archives,
    (
      array_agg(format('%s: %s', t.partition_name, w.reason) order by p.range_start) filter (where w.reason is not null)
    )[1] as last_error
  from fleet.erasure_items t
  join fleet.hb_partitions p using (partition_name)
  cross join lateral (
    select coalesce(
      t.last_error,
      case
        when t.online_at is not null and t.archive_at is not null then null
        when p.held_reason is not null then 'is held: ' || p.held_reason
        when p.state = 'archive_failed' then 'waits for its archive, which failed: ' || p.last_error
      end
    ) as reason
  ) w
  where t.erasure_id = e.erasure_id
) i
order by e.erasure_id;

comment on view fleet.erasure_progress is
  'Every erasure: of which device, by whom and why, how many rows were deleted, which partitions and archives are left (the next '
  'ten by name), and what went wrong last. Example: select * from fleet.erasure_progress where state = ''running'';';
--! EndIncluded erase/erasure_progress.view.sql
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
  ) and not exists (
    select from fleet.erasure_items i where i.archive_at is null
  ) and not exists (
    select from fleet.audit_months_due()
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
--! Included erase/erase_step.sql
create or replace function fleet.erase_step() returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_ready bigint[];
  v_item record;
  v_erasure fleet.erasures;
  v_rows bigint;
  v_error text;
  v_unread text;
  v_table regclass;
  v_has_rows boolean;
  v_is_over boolean := true;
begin
  -- Which transactions may still write rows of the device.
  update fleet.erasures e
  set waits_for = array(select l.transaction from fleet.lockers_of_devices() l)
  where e.erasure_id in (
    select t.erasure_id from fleet.erasures t where t.state = 'running' and t.waits_for is null for update skip locked
  );
  if found then
    return 'done';
  end if;
  update fleet.erasures e
  set waits_for = case when w.pids is null then '{}' else e.waits_for end,
    last_error = 'waits for transactions that began before it: backends ' || w.pids
  from (
    select t.erasure_id,
      (select string_agg(l.pid::text, ', ' order by l.pid) from fleet.lockers_of_devices(t.waits_for) l) as pids
    from fleet.erasures t
    where t.state = 'running' and t.waits_for <> '{}'
    for update of t skip locked
  ) w
  where w.erasure_id = e.erasure_id;
  v_ready := array(
    select e.erasure_id from fleet.erasures e
    where e.state = 'running' and e.waits_for = '{}'
    order by e.erasure_id
    for update skip locked
  );

  -- What needs no work: nothing is online, or there is no archive.
  update fleet.erasure_items i
  set online_at = coalesce(i.online_at, now()),
    archive_at = coalesce(i.archive_at, case when p.archive_url is null then now() end)
  from fleet.hb_partitions p
  where (i.erasure_id, i.partition_name) in (
      -- An archiver may be recording one of them.
      select t.erasure_id, t.partition_name
      from fleet.erasure_items t
      where t.erasure_id = any (v_ready) and (t.online_at is null or t.archive_at is null)
      for update skip locked
    )
    and p.partition_name = i.partition_name and p.state = 'dropped'
    and (i.online_at is null or i.archive_at is null and p.archive_url is null)
    -- It may bring the device back.
    and not exists (
      select from fleet.restore_items o where o.partition_name = i.partition_name and o.state = 'running'
    );

  -- Up to 100 devices from one partition, so that the transaction is short.
  select p.partition_name, p.archive_url, (array_agg(i.erasure_id order by i.erasure_id))[1:100] as erasure_ids into v_item
  from fleet.erasure_items i
  join fleet.hb_partitions p using (partition_name)
  where i.erasure_id = any (v_ready) and i.online_at is null and p.state in ('active', 'restored')
    and (i.next_attempt_at is null or i.next_attempt_at <= now())
  group by p.partition_name
  order by p.range_start
  limit 1;
  if found then
    begin
      update fleet.erasure_items i
      set online_at = clock_timestamp(), rows_online = i.rows_online + coalesce(d.deleted, 0), attempts = 0,
        next_attempt_at = null, last_error = null,
        -- A day that is archived later is archived without the device.
        archive_at = coalesce(i.archive_at, case when v_item.archive_url is null then clock_timestamp() end)
      from fleet.erasures e
      left join fleet.delete_heartbeats(
        v_item.partition_name,
        array(select o.device_id from fleet.erasures o where o.erasure_id = any (v_item.erasure_ids))
      ) d using (device_id)
      where e.erasure_id = any (v_item.erasure_ids)
        and i.erasure_id = e.erasure_id and i.partition_name = v_item.partition_name;
    exception when others then
      v_error := sqlerrm;
      update fleet.erasure_items i
      set attempts = i.attempts + 1, last_error = v_error,
        next_attempt_at = now() + least(interval '1 minute' * (2 ^ least(i.attempts, 10)), interval '1 hour')
      where i.erasure_id = any (v_item.erasure_ids) and i.partition_name = v_item.partition_name;
    end;
    return 'done';
  end if;

  -- What is over. Some at a time, because each looks into every table.
  for v_erasure in
    select e.* from fleet.erasures e
    where e.erasure_id = any (v_ready)
      and not exists (
        select from fleet.erasure_items i
        where i.erasure_id = e.erasure_id and (i.online_at is null or i.archive_at is null)
      )
    order by e.last_error is not null, e.erasure_id
    limit 20
  loop
    v_rows := fleet.delete_device_rows(array[v_erasure.device_id]);
    select string_agg(t::text, ', ') into v_unread from fleet.tables_of_devices() t where not has_table_privilege(t, 'select');
    if v_unread is not null then
      update fleet.erasures
      set last_error = format('%s may not read %s, where rows of the device may be', current_user, v_unread),
        rows_other = rows_other + v_rows
      where erasure_id = v_erasure.erasure_id;
      continue;
    end if;
    v_error := null;
    for v_table in select t from fleet.tables_of_devices() t loop
      execute format('select exists (select 1 from only %s where device_id = $1)', v_table)
      into v_has_rows using v_erasure.device_id;
      v_error := concat_ws(', ', v_error, case when v_has_rows then v_table::text end);
    end loop;
    v_error := nullif(v_error, '');
    if v_error is not null then
      -- Rows that came since, for example with a partition that was attached by hand.
      insert into fleet.erasure_items as i (erasure_id, partition_name)
      select v_erasure.erasure_id, p.partition_name
      from fleet.hb_partitions p
      where fleet.table_of(p)::regclass::text = any (string_to_array(v_error, ', '))
      on conflict on constraint erasure_items_pkey do update
        set online_at = null, archive_at = null, next_attempt_at = now() + interval '1 minute';
      update fleet.erasures
      set last_error = format('there are rows of the device again, in %s', v_error), rows_other = rows_other + v_rows
      where erasure_id = v_erasure.erasure_id;
      continue;
    end if;
    update fleet.erasures e
    set state = 'done', finished_at = now(), last_error = null, waits_for = null, rows_other = e.rows_other + v_rows
    where e.erasure_id = v_erasure.erasure_id;
    perform fleet.record_event(
      'device.erased', p_rows => s.rows_online, p_duration_ms => fleet.elapsed_ms(v_erasure.requested_at),
      p_detail => format(
        'erasure %s; %s heartbeats online, %s in %s archives', v_erasure.erasure_id, s.rows_online, s.rows_archived, s.rewritten
      )
    )
    from (
      select sum(i.rows_online)::bigint as rows_online, sum(i.rows_archived)::bigint as rows_archived,
        count(*) filter (where i.rows_archived > 0) as rewritten
      from fleet.erasure_items i
      where i.erasure_id = v_erasure.erasure_id
    ) s;
    v_is_over := false;
  end loop;
  if not v_is_over then
    return 'done';
  end if;
  if exists (select from fleet.erasure_items i where i.archive_at is null) then
    perform fleet.wake_archiver('erase');
  end if;
  return 'over';
end
$$;

comment on function fleet.erase_step() is
  'Does one step of the erasures that are running: deletes the heartbeats of their devices from one partition, or ends '
  'erasures for which nothing is left. Returns done, or over when there is nothing to do now. Called by fleet.run_erasures(). '
  'Example: select fleet.erase_step();';
--! EndIncluded erase/erase_step.sql
--! Included erase/run_erasures.sql
-- A procedure that commits can have neither SET nor SECURITY DEFINER, so the function that it calls has them.
create or replace procedure fleet.run_erasures(p_budget interval default '4 minutes')
language plpgsql
as $$
declare
  v_until timestamptz := pg_catalog.clock_timestamp() + p_budget;
  v_outcome text;
begin
  loop
    v_outcome := fleet.erase_step();
    commit;
    exit when v_outcome = 'over' or pg_catalog.clock_timestamp() > v_until;
  end loop;
end
$$;

comment on procedure fleet.run_erasures(interval) is
  'Deletes the heartbeats of erased devices from the partitions that are online, one partition a transaction, and ends the '
  'erasures for which nothing is left. May be stopped at any time; the next run goes on. Run by pg_cron every five minutes. '
  'Example: call fleet.run_erasures();';
--! EndIncluded erase/run_erasures.sql
--! Included erase/claim_erasure.sql
-- The lease is that of the partition, so nobody archives it meanwhile. All devices that wait for an archive go in one revision.
create or replace function fleet.claim_erasure(p_worker text, p_lease interval default '5 minutes')
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, device_ids bigint[], is_recorded boolean,
  archive_url text, archive_bytes bigint, checksum_sha256 text, row_count bigint, columns jsonb, columns_at timestamptz,
  leftovers text[]
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_name text;
  v_is_recorded boolean;
begin
  select p.partition_name, i.is_recorded into v_name, v_is_recorded
  from fleet.hb_partitions p
  cross join fleet.settings s
  cross join lateral (
    select bool_or(i.recorded_at is not null) as is_recorded,
      bool_or(i.recorded_at is not null and i.confirmed_at is null) as is_unconfirmed,
      bool_or(i.recorded_at is null and (i.next_attempt_at is null or i.next_attempt_at <= now())) as is_due,
      bool_or(i.recorded_at is not null and (i.next_attempt_at is null or i.next_attempt_at <= now())) as is_deletion_due,
      bool_or(i.online_at is null) as is_online
    from fleet.erasure_items i
    where i.partition_name = p.partition_name and i.archive_at is null
  ) i
  where p.archive_url is not null and p.proven_at is not null and p.held_reason is null
    and (p.lease_until is null or p.lease_until < now())
    -- One revision after the other: the file that the last one replaced goes first.
    and case when i.is_recorded
      then i.is_deletion_due and (s.proofs_needed = 1 or not i.is_unconfirmed)
      else i.is_due
    end
    -- Otherwise the day could be archived again, with the device, after this.
    and (p.state not in ('active', 'restored') or not i.is_online)
    and not exists (
      select from fleet.restore_items o
      where o.partition_name = p.partition_name and o.state = 'running' and o.lease_until >= now()
    )
  order by p.range_start
  limit 1
  for update of p skip locked;
  if not found then
    return;
  end if;
  -- A restore that was cut short begins again later, with the new archive.
  update fleet.restore_items o
  set state = 'pending', lease_owner = null, lease_until = null
  where o.partition_name = v_name and o.state = 'running';
  update fleet.hb_partitions p
  set lease_owner = p_worker, lease_until = now() + p_lease
  where p.partition_name = v_name;
  return query
    select p.partition_name, p.range_start, p.range_end, array_agg(e.device_id order by e.device_id), v_is_recorded,
      p.archive_url, p.archive_bytes, p.checksum_sha256, p.row_count, p.columns, p.columns_at,
      (
        select array_agg(distinct k.key)
        from fleet.erasure_items o
        cross join unnest(o.leftovers) k (key)
        where o.partition_name = v_name and o.recorded_at is not null and o.archive_at is null
      )
    from fleet.hb_partitions p
    join fleet.erasure_items i on i.partition_name = p.partition_name and i.archive_at is null
      and (i.recorded_at is not null) = v_is_recorded
    join fleet.erasures e using (erasure_id)
    where p.partition_name = v_name
    group by p.partition_name;
end
$$;

comment on function fleet.claim_erasure(text, interval) is
  'Gives this archiver a lease on the next archive that may hold devices that are to be erased, and returns these devices. With '
  'is_recorded, the new revision is recorded and only the objects in leftovers are to be deleted. Returns no row if there is '
  'none.';
--! EndIncluded erase/claim_erasure.sql
--! Included erase/renew_erasure_lease.sql
create or replace function fleet.renew_erasure_lease(p_partition text, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.hb_partitions p
    set lease_until = now() + p_lease
    where p.partition_name = p_partition and p.lease_owner = p_worker and p.held_reason is null
      and exists (select from fleet.erasure_items i where i.partition_name = p.partition_name and i.archive_at is null)
    returning p.partition_name
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_erasure_lease(text, text, interval) is
  'Extends an archiver''s lease on an archive from which devices are erased. Returns false if the archiver no longer '
  'holds it, or the partition is held.';
--! EndIncluded erase/renew_erasure_lease.sql
--! Included erase/check_erasure_lease.sql
create or replace function fleet.check_erasure_lease(p_partition text, p_worker text, p_device_ids bigint[] default '{}')
returns fleet.hb_partitions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.lease_owner is distinct from p_worker or v_partition.proven_at is null or v_partition.archive_url is null then
    raise exception using
      errcode = 'FL003',
      message = format(
        'partition %s is %s and leased to %s, not to %s',
        p_partition, v_partition.state, coalesce(v_partition.lease_owner, 'nobody'), coalesce(p_worker, 'null')
      ),
      hint = 'The lease ran out and another archiver may have taken it: stop working on this archive.';
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s), and its archive is not changed', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if not exists (select from fleet.erasure_items i where i.partition_name = p_partition and i.archive_at is null)
    or exists (
      select from unnest(p_device_ids) d (device_id)
      where not exists (
        select from fleet.erasure_items i
        join fleet.erasures e using (erasure_id)
        where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is null and e.device_id = d.device_id
      )
    ) then
    raise exception using
      errcode = 'FL002',
      message = format('no erasure covers these devices in the archive of %s; it stays as it is', p_partition),
      hint = 'Claim it first with fleet.claim_erasure().';
  end if;
  return v_partition;
end
$$;

comment on function fleet.check_erasure_lease(text, text, bigint[]) is
  'Returns the partition''s row, locked, if this archiver holds its lease, it is not held, and an erasure of each of these '
  'devices has to go through its archive. Raises an error otherwise.';
--! EndIncluded erase/check_erasure_lease.sql
--! Included erase/begin_erasure.sql
-- UNLOGGED, so that what is erased is not written to the WAL once more.
create or replace function fleet.begin_erasure(p_partition text, p_worker text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_table text := left('erasing_' || p_partition, 63);
begin
  v_partition := fleet.check_erasure_lease(p_partition, p_worker);
  if v_partition.columns is null then
    raise exception using
      errcode = 'FL002',
      message = format('nothing is erased from the archive of %s: its columns are not recorded', p_partition),
      hint = 'The archiver records them from the manifest. Run the archiver version that belongs to this database.';
  end if;
  perform fleet.require_forms(p_partition, v_partition.columns);
  execute format('drop table if exists fleet.%I', v_table);
  execute format('create unlogged table fleet.%I (%s)', v_table, (
    select string_agg(format('%I %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality)
    from jsonb_array_elements(v_partition.columns) with ordinality c
  ));
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_erasure(text, text) is
  'Creates the empty table for the rows that are erased from an archive, with the columns of the archive, and returns its name. '
  'fleet.record_erasure() counts them there and drops it.';
--! EndIncluded erase/begin_erasure.sql
--! Included erase/rows_of_device.sql
create or replace function fleet.rows_of_device(p_table regclass, p_device_id bigint) returns setof integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute format('select 1 from only %s where device_id = $1', p_table) using p_device_id;
end
$$;

comment on function fleet.rows_of_device(regclass, bigint) is
  'One row for each row that a table has of a device. Used by fleet.record_erasure().';
--! EndIncluded erase/rows_of_device.sql
--! Included erase/record_erasure.sql
-- Postgres itself sees every row that goes: the archiver copies them into the table of fleet.begin_erasure(). They must all be of
-- devices that are being erased, and count, times and row hash of the archive fall by exactly them. So an archiver cannot use
-- this to lose other rows: a restore would find another row hash.
create or replace function fleet.record_erasure(
  p_partition text,
  p_worker text,
  p_device_ids bigint[],
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_manifest_format integer,
  p_rows_sha256 text,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_leftovers text[]
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  c_revision constant text := '(?:_r([0-9]+))?\.parquet$';
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_erased record;
  v_strange bigint;
  v_is_retired boolean;
  v_in_table bigint := 0;
  v_proofs smallint := (select s.proofs_needed from fleet.settings s);
begin
  v_partition := fleet.check_erasure_lease(p_partition, p_worker, p_device_ids);
  v_table := to_regclass(format('fleet.%I', left('erasing_' || p_partition, 63)));
  if v_table is null or p_device_ids is null or cardinality(p_device_ids) = 0 then
    raise exception using
      errcode = 'FL002',
      message = format('%s has not begun to erase devices from the archive of %s', p_worker, p_partition),
      hint = 'Call fleet.begin_erasure() first.';
  end if;
  if p_checksum_sha256 is null or p_checksum_sha256 !~ '^[0-9a-f]{64}$' or p_rows_sha256 is null
    or p_rows_sha256 !~ '^[0-9a-f]{64}$' or p_archive_bytes is null
    or regexp_replace(p_archive_url, c_revision, '') is distinct from regexp_replace(v_partition.archive_url, c_revision, '')
    or coalesce(substring(p_archive_url from c_revision)::integer, 1)
      <= coalesce(substring(v_partition.archive_url from c_revision)::integer, 1) then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a later revision of %s', coalesce(p_archive_url, 'null'), v_partition.archive_url),
      hint = 'Give the place, the checksums and the size of the revision without the erased devices.';
  end if;

  -- What may be deleted: objects of this day, and not the new one.
  if p_leftovers is null or exists (
    select from unnest(p_leftovers) k (key)
    where k.key is null
      or k.key !~ format('^(device_heartbeats/|device_heartbeats/superseded/|superseded/)date=%s/[^/]+$', v_partition.range_start::date)
      or right(p_archive_url, length(k.key) + 1) = '/' || k.key
  ) then
    raise exception using
      errcode = 'FL422',
      message = format('p_leftovers names an object that the archive of %s does not replace', p_partition),
      hint = 'Give the keys of objects of this day in the store.';
  end if;

  -- The archiver may insert until here.
  execute format('revoke all on %s from fleet_archiver', v_table);
  execute format('alter table %s disable row level security', v_table);
  execute format('select count(*) from %s where (device_id = any ($1)) is not true', v_table)
  into v_strange using p_device_ids;
  select * into v_erased from fleet.count_rows(v_table);
  if v_strange > 0 or p_row_count is distinct from v_partition.row_count - v_erased.row_count
    or (p_min_ts is null) is distinct from (p_row_count = 0) or (p_max_ts is null) is distinct from (p_row_count = 0)
    or p_min_ts < v_partition.min_ts or p_max_ts > v_partition.max_ts or p_min_ts > p_max_ts
    or p_row_count > 0 and v_erased.min_ts > v_partition.min_ts and p_min_ts <> v_partition.min_ts
    or p_row_count > 0 and v_erased.max_ts < v_partition.max_ts and p_max_ts <> v_partition.max_ts then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the new archive of %s is not the old one without the erased devices; the old one is kept', p_partition
      ),
      detail = format(
        'rows %s, erased %s (%s of them of other devices), new %s; from %s to %s, new %s to %s', v_partition.row_count,
        v_erased.row_count, v_strange, coalesce(p_row_count::text, 'null'), v_partition.min_ts, v_partition.max_ts, p_min_ts,
        p_max_ts
      ),
      hint = 'Check the archive: npm run archive -- verify';
  end if;

  -- A retired table that is not dropped yet. It stays equal to its archive.
  v_is_retired := v_partition.state in ('detached', 'archiving', 'archived', 'archive_failed');
  if v_is_retired then
    select coalesce(sum(d.deleted), 0) into v_in_table from fleet.delete_heartbeats(p_partition, p_device_ids) d;
  end if;
  update fleet.erasure_items i
  set recorded_at = now(), rows_archived = i.rows_archived + d.rows, leftovers = p_leftovers,
    replaced = jsonb_build_object(
      'archive_url', v_partition.archive_url, 'checksum_sha256', v_partition.checksum_sha256,
      'archive_bytes', v_partition.archive_bytes, 'row_count', v_partition.row_count
    ),
    -- Whether a second proof is needed is decided now, because later the old object is gone.
    confirmed_at = case when v_proofs = 1 then now() end,
    confirmed_by = case when v_proofs = 1 then 'nobody, because proofs_needed was 1' end,
    last_error = null, attempts = 0, next_attempt_at = null,
    online_at = case when v_is_retired then coalesce(i.online_at, now()) else i.online_at end,
    rows_online = i.rows_online + case when v_is_retired then least(d.rows, v_in_table) else 0 end
  from fleet.erasures e
  cross join lateral (
    select count(*) as rows from fleet.rows_of_device(v_table, e.device_id)
  ) d
  where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is null
    and e.erasure_id = i.erasure_id and e.device_id = any (p_device_ids);
  update fleet.hb_partitions p
  set archive_url = p_archive_url, checksum_sha256 = p_checksum_sha256, archive_bytes = p_archive_bytes,
    manifest_format = p_manifest_format, rows_sha256 = p_rows_sha256, content_checksum = null, checksum_version = null,
    row_count = p_row_count, min_ts = p_min_ts, max_ts = p_max_ts,
    rows_hash = p.rows_hash - v_erased.rows_hash,
    counted = null,
    proven_at = now(), confirmed_at = null, confirmed_by = null,
    lease_owner = case when v_proofs = 1 then p.lease_owner end,
    lease_until = case when v_proofs = 1 then p.lease_until end
  where p.partition_name = p_partition;
  execute format('drop table %s', v_table);
  perform fleet.increment_counter('archive_bytes_pushed_total', p_archive_bytes);
  perform fleet.record_event('partition.erase', p_partition, v_erased.row_count, p_detail => p_archive_url);
  return v_proofs = 1;
end
$$;

comment on function fleet.record_erasure(
  text, text, bigint[], text, text, bigint, integer, text, bigint, timestamptz, timestamptz, text[]
) is
  'Records a proven revision of an archive without the devices of an erasure, and deletes them from a retired table that is '
  'still there. The erased rows are in the table of fleet.begin_erasure(): Postgres checks that they are all of these devices and '
  'that the archive has exactly these fewer. Returns whether the objects in p_leftovers may be deleted now: if '
  'settings.proofs_needed is 2, a second proof comes first.';
--! EndIncluded erase/record_erasure.sql
--! Included erase/record_absence.sql
create or replace function fleet.record_absence(p_partition text, p_worker text, p_device_ids bigint[], p_checksum_sha256 text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_rows bigint := 0;
begin
  v_partition := fleet.check_erasure_lease(p_partition, p_worker, p_device_ids);
  if v_partition.state in ('detached', 'archiving', 'archived', 'archive_failed') then
    select coalesce(sum(d.deleted), 0) into v_rows from fleet.delete_heartbeats(p_partition, p_device_ids) d;
  end if;
  if p_checksum_sha256 is distinct from v_partition.checksum_sha256 or v_rows > 0 and v_partition.state = 'archived' then
    raise exception using
      errcode = 'FL010',
      message = format(
        '%s says that the archive of %s has no row of the erased devices, but %s; nothing was deleted', p_worker, p_partition,
        case
          when v_rows > 0 then format('its table has %s', v_rows)
          else format('it read an object with SHA-256 %s, not %s', p_checksum_sha256, v_partition.checksum_sha256)
        end
      ),
      hint = 'Check the archive: npm run archive -- verify';
  end if;
  update fleet.erasure_items i
  set archive_at = now(), last_error = null, attempts = 0, next_attempt_at = null,
    online_at = case when v_partition.state not in ('active', 'restored') then coalesce(i.online_at, now()) else i.online_at end,
    rows_online = i.rows_online + v_rows
  from fleet.erasures e
  where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is null
    and e.erasure_id = i.erasure_id and e.device_id = any (p_device_ids);
  update fleet.hb_partitions
  set lease_owner = null, lease_until = null
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_absence(text, text, bigint[], text) is
  'Records that an archive, read and found to be the one that was proven, holds no row of these devices, and gives the partition '
  'back. Refused if its table, which is still there, has such rows.';
--! EndIncluded erase/record_absence.sql
--! Included erase/finish_erasure.sql
create or replace function fleet.finish_erasure(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.check_erasure_lease(p_partition, p_worker);
  update fleet.erasure_items i
  set archive_at = now(), leftovers = null, last_error = null, attempts = 0, next_attempt_at = null
  from fleet.settings s
  where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is not null
    and (s.proofs_needed = 1 or i.confirmed_at is not null);
  if not found then
    raise exception using
      errcode = 'FL001',
      message = format('the new archive of %s is not recorded, or not confirmed by a second login', p_partition),
      hint = 'Call fleet.record_erasure() first; with settings.proofs_needed at 2 also run: npm run archive -- confirm.';
  end if;
  update fleet.hb_partitions
  set lease_owner = null, lease_until = null
  where partition_name = p_partition;
end
$$;

comment on function fleet.finish_erasure(text, text) is
  'Records that the objects that a revision without erased devices replaced are deleted, and gives the partition back.';
--! EndIncluded erase/finish_erasure.sql
--! Included erase/fail_erasure.sql
create or replace function fleet.fail_erasure(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.hb_partitions
  set lease_owner = null, lease_until = null
  where partition_name = p_partition and lease_owner = p_worker;
  if not found then
    return;
  end if;
  update fleet.erasure_items i
  set attempts = i.attempts + 1, last_error = p_error,
    -- After 1, 2, 4, ... minutes, at most an hour.
    next_attempt_at = now() + least(interval '1 minute' * (2 ^ least(i.attempts, 10)), interval '1 hour')
  where i.partition_name = p_partition and i.archive_at is null;
  execute format('drop table if exists fleet.%I', left('erasing_' || p_partition, 63));
  perform fleet.record_event('partition.erase.failed', p_partition, p_detail => p_error, p_is_ok => false);
end
$$;

comment on function fleet.fail_erasure(text, text, text) is
  'Records that devices could not be erased from an archive and why, and when to try again. The archive is as it was, or its new '
  'revision is recorded and the old object is still there.';
--! EndIncluded erase/fail_erasure.sql
--! Included erase/erasures_to_confirm.sql
create or replace function fleet.erasures_to_confirm()
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, device_ids bigint[], archive_url text,
  checksum_sha256 text, rows_sha256 text, row_count bigint, columns jsonb, old_archive_url text, old_checksum_sha256 text,
  old_row_count bigint
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.partition_name, p.range_start, p.range_end, array_agg(e.device_id order by e.device_id), p.archive_url,
    p.checksum_sha256, p.rows_sha256, p.row_count, p.columns, min(i.replaced ->> 'archive_url'),
    min(i.replaced ->> 'checksum_sha256'), min((i.replaced ->> 'row_count')::bigint)
  from fleet.erasure_items i
  join fleet.erasures e using (erasure_id)
  join fleet.hb_partitions p using (partition_name)
  where i.recorded_at is not null and i.archive_at is null and i.confirmed_at is null
  group by p.partition_name
  order by p.range_start;
$$;

comment on function fleet.erasures_to_confirm() is
  'The archives without erased devices whose old object is still there and that no second login has compared with it.';
--! EndIncluded erase/erasures_to_confirm.sql
--! Included erase/confirm_erasure.sql
create or replace function fleet.confirm_erasure(
  p_partition text,
  p_old_checksum_sha256 text,
  p_checksum_sha256 text,
  p_rows_sha256 text,
  p_old_rows_sha256 text
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  if pg_has_role(session_user, 'fleet_archiver', 'member') then
    raise exception using
      errcode = 'FL002',
      message = format('%s may act as the archiver, so it cannot confirm what the archiver proved', session_user),
      hint = 'Confirm with a login that is a member of fleet_verifier and of no other role of the store.';
  end if;
  v_partition := fleet.get_partition(p_partition);
  if p_old_rows_sha256 is distinct from p_rows_sha256
    or (p_checksum_sha256, p_rows_sha256) is distinct from (v_partition.checksum_sha256, v_partition.rows_sha256)
    or exists (
      select from fleet.erasure_items i
      where i.partition_name = p_partition and i.recorded_at is not null and i.archive_at is null
        and i.replaced ->> 'checksum_sha256' is distinct from p_old_checksum_sha256
    ) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'the new archive of %s, as %s read it, is not the old one without the erased devices; the old one is kept',
        p_partition, session_user
      ),
      detail = format(
        'sha256 %s, read %s; rows_sha256 %s, read %s, of the old one without the devices %s', v_partition.checksum_sha256,
        p_checksum_sha256, v_partition.rows_sha256, p_rows_sha256, p_old_rows_sha256
      ),
      hint = 'Both objects are kept until they are confirmed. Either one is damaged, or the archiver cannot be trusted: stop it.';
  end if;
  update fleet.erasure_items
  set confirmed_at = now(), confirmed_by = session_user
  where partition_name = p_partition and recorded_at is not null and archive_at is null and confirmed_at is null;
  if not found then
    return false;
  end if;
  perform fleet.record_event('partition.erase.confirm', p_partition, p_detail => session_user::text);
  perform pg_notify('fleet_archiver', p_partition);
  return true;
end
$$;

comment on function fleet.confirm_erasure(text, text, text, text, text) is
  'Records that a second login read the old and the new object of an archive and found that the new one is the old one without '
  'the erased devices. Returns false if there is nothing to confirm. Required before the old object is deleted if '
  'settings.proofs_needed is 2. Used by: npm run archive -- confirm.';
--! EndIncluded erase/confirm_erasure.sql
--! Included checks/check_erasures.sql
create or replace function fleet.check_erasures(p_now timestamptz default now())
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
  v_failed text;
  v_retries text;
  v_slow text;
  v_unconfirmed boolean;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'erasures';
  -- By the number of the erasure, because more people see this than may know the device.
  -- A store that does not answer stops all of them, so an error is said once, after the numbers of all that have it.
  select string_agg(format('%s: %s', f.names, f.last_error), '; ' order by f.erasure_id),
    string_agg(f.commands, e'\n' order by f.erasure_id)
  into v_failed, v_retries
  from (
    select e.last_error, min(e.erasure_id) as erasure_id,
      string_agg('erasure ' || e.erasure_id, ', ' order by e.erasure_id) as names,
      string_agg(format('select fleet.retry_erasure(%s);', e.erasure_id), e'\n' order by e.erasure_id) as commands
    from fleet.erasure_progress e
    where e.state = 'running'
      and (
        exists (select from fleet.erasure_items i where i.erasure_id = e.erasure_id and i.last_error is not null)
        or e.last_error is not null and e.requested_at < p_now - interval '1 hour'
      )
    group by e.last_error
  ) f;
  select string_agg(
      format('erasure %s, with %s partitions and %s archives left', e.erasure_id, e.partitions_left, e.archives_left),
      '; ' order by e.erasure_id
    ),
    bool_or(exists (
      select from fleet.erasure_items i
      cross join fleet.settings s
      where i.erasure_id = e.erasure_id and i.recorded_at is not null and i.archive_at is null and i.confirmed_at is null
        and s.proofs_needed > 1
    ))
  into v_slow, v_unconfirmed
  from fleet.erasure_progress e
  where e.state = 'running' and e.requested_at < p_now - interval '1 day';
  status := case when v_failed is not null then 'fail' when v_slow is not null then 'warn' else 'ok' end;
  detail := coalesce(v_failed, 'running for more than a day: ' || v_slow, 'no erasure has failed or is stuck');
  remedy := case
    when v_failed is not null then e'-- once the cause is fixed\n' || v_retries || e'\ncall fleet.run_erasures();'
    when v_unconfirmed then e'# in a shell, with VERIFIER_DATABASE_URL\nnpm run archive -- confirm'
    when v_slow is not null then 'call fleet.run_erasures();'
  end;
  return next;
end
$$;

comment on function fleet.check_erasures(timestamptz) is
  'The part of fleet.check() about erasures: those that failed, and those that do not end.';
--! EndIncluded checks/check_erasures.sql
--! Included erase/partitions_being_erased.sql
create or replace function fleet.partitions_being_erased() returns table (partition_name text, range_start timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.partition_name, p.range_start
  from fleet.hb_partitions p
  where p.archive_url is not null
    and exists (select from fleet.erasure_items i where i.partition_name = p.partition_name and i.archive_at is null)
  order by p.range_start;
$$;

comment on function fleet.partitions_being_erased() is
  'The partitions with an archive that an erasure has not been through yet. Their manifest may be ahead of the database, objects '
  'that were replaced may still be there, and nothing of theirs may be moved. Says nothing about devices. '
  'Example: select * from fleet.partitions_being_erased();';
--! EndIncluded erase/partitions_being_erased.sql
--! Included archive/forget_archive.sql
-- For a database that is older than its store: it was restored from a backup, and names an object that was replaced since.
create or replace function fleet.forget_archive(p_partition text, p_reason text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format('the archive of %s is not forgotten: the reason is empty', coalesce(p_partition, 'null')),
      hint = 'Say why: select fleet.forget_archive(''…'', ''restored from the backup of Monday'');';
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'dropped' or v_partition.archive_url is null or v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format(
        'the archive of %s is not forgotten: the partition is %s%s', p_partition, v_partition.state,
        case
          when v_partition.archive_url is null then ' and has none'
          when v_partition.held_reason is not null then format(' and held (%s)', v_partition.held_reason)
          else ''
        end
      ),
      hint = 'Only the archive of a dropped partition that is not held can be registered again.';
  end if;
  -- fleet.register_archive() takes any archive of a dropped partition that has no rows.
  update fleet.hb_partitions
  set row_count = 0, min_ts = null, max_ts = null, rows_hash = null, confirmed_at = null, confirmed_by = null, lease_owner = null,
    lease_until = null
  where partition_name = p_partition;
  perform fleet.record_event(
    'partition.forget', p_partition, v_partition.row_count,
    p_detail => format(
      '%s, sha256 %s; by %s: %s', v_partition.archive_url, v_partition.checksum_sha256, (fleet.current_actor()).actor, p_reason
    )
  );
  perform fleet.audit(
    'partition.archive_forgotten', 'partition:' || p_partition,
    jsonb_build_object(
      'archive_url', v_partition.archive_url, 'sha256', v_partition.checksum_sha256, 'rows', v_partition.row_count
    ),
    jsonb_build_object('reason', p_reason)
  );
end
$$;

comment on function fleet.forget_archive(text, text) is
  'Makes the database forget which rows the archive of a dropped partition has, and touches nothing in the store. Then npm run '
  'archive -- register proves and registers what the store has; until then the archive cannot be restored. For a database that was restored from a backup and names an '
  'object that was replaced since. The event keeps what was forgotten. '
  'Example: select fleet.forget_archive(''device_heartbeats_p2026_08_15'', ''restored from the backup of Monday'');';
--! EndIncluded archive/forget_archive.sql
--! Included checks/check_webhooks.sql
create or replace function fleet.check_webhooks(p_now timestamptz default now())
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
  v_webhooks bigint;
  v_silence interval;
  v_waiting bigint;
  v_oldest interval;
  v_dead text;
  v_retries text;
  v_failing text;
  v_failing_briefly text;
  v_looks text;
begin
  perform fleet.not_in_future(p_now);
  select count(*) filter (where w.paused_at is null) into v_webhooks from fleet.webhooks w;
  -- A row in the future would hide a dead notifier: the clock may have run ahead.
  select p_now - max(n.last_seen_at) into v_silence from fleet.notifiers n where n.last_seen_at <= p_now;
  select count(*), p_now - min(d.due_at) into v_waiting, v_oldest
  from fleet.webhook_deliveries d
  join fleet.webhooks w using (webhook_id)
  where d.state = 'pending' and d.due_at <= p_now and w.paused_at is null;

  check_name := 'notifier';
  status := case
    when v_webhooks = 0 or v_silence < interval '2 minutes' then 'ok'
    when v_oldest > interval '2 minutes' then 'fail'
    else 'warn'
  end;
  detail := case when v_webhooks = 0 then 'there is no webhook to send to' else concat_ws(
    '; ', coalesce('last seen ' || date_trunc('second', v_silence) || ' ago', 'never seen'),
    case when v_waiting > 0 then format('%s messages are due, the oldest for %s', v_waiting, date_trunc('second', v_oldest)) end
  ) end;
  remedy := case when status <> 'ok' then e'# in a shell; it keeps running\nnpm run notifier' end;
  return next;

  check_name := 'webhooks';
  select string_agg(format('%s has %s', w.webhook_name, d.dead), ', ' order by w.webhook_name),
    string_agg(format('select fleet.retry_deliveries(%L);', w.webhook_name), e'\n' order by w.webhook_name)
  into v_dead, v_retries
  from fleet.webhooks w
  join (
    select l.webhook_id, count(*) as dead from fleet.webhook_deliveries l where l.state = 'dead' group by l.webhook_id
  ) d using (webhook_id);
  select
    string_agg(f.error, '; ' order by f.webhook_name) filter (where f.is_long),
    string_agg(f.error, '; ' order by f.webhook_name) filter (where not f.is_long),
    string_agg(format('select fleet.test_webhook(%L);', f.webhook_name), e'\n' order by f.webhook_name) filter (where f.is_long)
  into v_failing, v_failing_briefly, v_looks
  from (
    select w.webhook_name, format('%s: %s', w.webhook_name, coalesce(w.last_error, 'no answer')) as error,
      -- A receiver that restarts is no reason to act.
      p_now - coalesce(w.last_success_at, w.created_at) > interval '15 minutes' as is_long
    from fleet.webhooks w
    where w.failures > 0 and w.paused_at is null
  ) f;
  status := case when v_dead is not null or v_failing is not null then 'warn' else 'ok' end;
  detail := coalesce(
    concat_ws(
      '; ', 'not accepted for 15 minutes or longer: ' || v_failing, 'could not be sent for three days (dead letters): ' || v_dead
    ),
    ''
  );
  detail := case
    when detail <> '' then detail
    else coalesce('not accepted for less than 15 minutes: ' || v_failing_briefly, 'every receiver accepts its messages')
  end;
  remedy := case
    when v_failing is not null then e'-- once the receiver is fixed; select * from fleet.webhook_health shows the webhooks\n' || v_looks
    when v_dead is not null then
      e'-- once the receiver is fixed; fleet.dismiss_deliveries() gives them up instead\n' || v_retries
  end;
  return next;
end
$$;

comment on function fleet.check_webhooks(timestamptz) is
  'The part of fleet.check() about webhooks: whether a notifier runs, receivers that fail, and dead letters.';
--! EndIncluded checks/check_webhooks.sql
--! Included access/keep_audit_log.sql
create or replace function fleet.keep_audit_log() returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'DELETE' then
    if old.at < now() - (select s.audit_keep from fleet.settings s) then
      return old;
    end if;
  elsif tg_op = 'UPDATE' then
    -- The row stays, without what it says about a device that is erased.
    if new.before is null and new.after is null
      and to_jsonb(new) - '{before,after}'::text[] = to_jsonb(old) - '{before,after}'::text[]
      and exists (
        select from fleet.erasures e
        where old.target = 'device:' || e.device_id
          or old.action like 'import\_device.%' and e.device_id::text in (old.before ->> 'device_id', old.after ->> 'device_id')
      )
    then
      return new;
    end if;
  end if;
  raise exception using
    errcode = 'FL403',
    message = format('fleet.audit_log: %s is refused, because rows can only be added', tg_op),
    hint = 'Rows that are older than settings.audit_keep are deleted by fleet.prune().';
end
$$;

comment on function fleet.keep_audit_log() is
  'Trigger on fleet.audit_log: refuses to change rows, and to delete any that is not older than settings.audit_keep. Only '
  'fleet.erase_device() may remove what a row says about the device.';
--! EndIncluded access/keep_audit_log.sql
--! Included access/audit_months_due.sql
create or replace function fleet.audit_months_due() returns setof date
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select m.month::date
  from fleet.settings s
  cross join generate_series(
    date_trunc('month', (select min(l.at) from fleet.audit_log l)), date_trunc('month', now()) - interval '1 month',
    interval '1 month'
  ) as m (month)
  left join fleet.audit_archives a on a.month = m.month::date
  where s.audit_archive and (a.month is null or a.wanted > a.done and a.pruned_at is null)
    and exists (select from fleet.audit_log l where l.at >= m.month and l.at < m.month + interval '1 month')
  order by m.month;
$$;

comment on function fleet.audit_months_due() is
  'The past months of fleet.audit_log that are to be archived, or to be archived again. None unless settings.audit_archive is on.';
--! EndIncluded access/audit_months_due.sql
--! Included access/claim_audit_month.sql
create or replace function fleet.claim_audit_month(p_worker text, p_lease interval default '5 minutes')
returns table (month date, revision integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_month date;
begin
  insert into fleet.audit_archives (month)
  select d from fleet.audit_months_due() d
  on conflict do nothing;
  select a.month into v_month
  from fleet.audit_archives a
  where a.month in (select d from fleet.audit_months_due() d)
    and (a.lease_until is null or a.lease_until < now()) and (a.next_attempt_at is null or a.next_attempt_at <= now())
  order by a.month
  limit 1
  for update skip locked;
  return query
    update fleet.audit_archives a
    set lease_owner = p_worker, lease_until = now() + p_lease
    where a.month = v_month
    returning a.month, a.wanted;
end
$$;

comment on function fleet.claim_audit_month(text, interval) is
  'Gives this archiver a lease on the oldest month of fleet.audit_log that is to be archived. Returns no row if there is none.';
--! EndIncluded access/claim_audit_month.sql
--! Included access/renew_audit_lease.sql
create or replace function fleet.renew_audit_lease(p_month date, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.audit_archives a
    set lease_until = now() + p_lease
    where a.month = p_month and a.lease_owner = p_worker
    returning a.month
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_audit_lease(date, text, interval) is
  'Extends an archiver''s lease on a month of fleet.audit_log. Returns false if the archiver no longer holds it.';
--! EndIncluded access/renew_audit_lease.sql
--! Included access/record_audit_archive.sql
create or replace function fleet.record_audit_archive(
  p_month date,
  p_worker text,
  p_revision integer,
  p_url text,
  p_sha256 text,
  p_bytes bigint,
  p_rows bigint,
  p_rows_sha256 text
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_archive fleet.audit_archives;
  v_rows bigint;
begin
  select a.* into v_archive from fleet.audit_archives a where a.month = p_month for update;
  if v_archive.lease_owner is distinct from p_worker then
    raise exception using
      errcode = 'FL003',
      message = format(
        'the audit log of %s is leased to %s, not to %s', to_char(p_month, 'YYYY-MM'), coalesce(v_archive.lease_owner, 'nobody'),
        coalesce(p_worker, 'null')
      ),
      hint = 'The lease ran out and another archiver may have taken it: stop working on this month.';
  end if;
  select count(*) into v_rows
  from fleet.audit_log l
  where l.at >= p_month::timestamptz and l.at < p_month::timestamptz + interval '1 month';
  if v_rows is distinct from p_rows or v_archive.pruned_at is not null then
    raise exception using
      errcode = 'FL010',
      message = format('the audit log of %s has %s rows, and its archive %s', to_char(p_month, 'YYYY-MM'), v_rows, p_rows),
      hint = 'A transaction that began in that month has ended. The archiver tries again.';
  end if;
  update fleet.audit_archives a
  set url = p_url, sha256 = p_sha256, bytes = p_bytes, rows = p_rows, rows_sha256 = p_rows_sha256, archived_at = now(),
    done = p_revision, attempts = 0, next_attempt_at = null, last_error = null, lease_owner = null, lease_until = null
  where a.month = p_month;
  perform fleet.record_event('audit.archived', p_rows => p_rows, p_detail => p_url);
end
$$;

comment on function fleet.record_audit_archive(date, text, integer, text, text, bigint, bigint, text) is
  'Records the archive of a month of fleet.audit_log that was read back and compared. Refused if the month has another number of '
  'rows meanwhile.';
--! EndIncluded access/record_audit_archive.sql
--! Included access/fail_audit_archive.sql
create or replace function fleet.fail_audit_archive(p_month date, p_worker text, p_error text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update fleet.audit_archives a
  set attempts = a.attempts + 1, last_error = p_error, lease_owner = null, lease_until = null,
    -- After 1, 2, 4, ... minutes, at most an hour.
    next_attempt_at = now() + least(interval '1 minute' * (2 ^ least(a.attempts, 10)), interval '1 hour')
  where a.month = p_month and a.lease_owner = p_worker;
$$;

comment on function fleet.fail_audit_archive(date, text, text) is
  'Records that a month of fleet.audit_log could not be archived and why, and when to try again.';
--! EndIncluded access/fail_audit_archive.sql
--! Included access/prune_audit_log.sql
-- By the clock, as the trigger that keeps the rows.
create or replace function fleet.prune_audit_log() returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_settings fleet.settings;
  v_deleted bigint;
begin
  select * into strict v_settings from fleet.settings;
  if not v_settings.audit_archive then
    delete from fleet.audit_log l where l.at < now() - v_settings.audit_keep;
    get diagnostics v_deleted = row_count;
    -- A month that lost rows is not archived again, which would lose them in the archive, too.
    update fleet.audit_archives a
    set pruned_at = now()
    where a.month::timestamptz < now() - v_settings.audit_keep and a.pruned_at is null;
    return v_deleted;
  end if;

  -- Whole months, and only those whose archive has every row. A transaction that began in the month may have ended after it was
  -- archived.
  update fleet.audit_archives a
  set wanted = a.wanted + 1
  where a.month::timestamptz + interval '1 month' < now() - v_settings.audit_keep
    and a.pruned_at is null and a.done = a.wanted
    and a.rows <> (
      select count(*) from fleet.audit_log l
      where l.at >= a.month::timestamptz and l.at < a.month::timestamptz + interval '1 month'
    );
  -- Counted and deleted in one snapshot, so that no row is deleted that was not counted.
  with pruned as (
    update fleet.audit_archives a
    set pruned_at = now()
    where a.month::timestamptz + interval '1 month' < now() - v_settings.audit_keep
      and a.pruned_at is null and a.done = a.wanted
      and a.rows = (
        select count(*) from fleet.audit_log l
        where l.at >= a.month::timestamptz and l.at < a.month::timestamptz + interval '1 month'
      )
    returning a.month
  )
  delete from fleet.audit_log l
  using pruned p
  where l.at >= p.month::timestamptz and l.at < p.month::timestamptz + interval '1 month';
  get diagnostics v_deleted = row_count;
  return v_deleted;
end
$$;

comment on function fleet.prune_audit_log() is
  'Deletes the rows of fleet.audit_log that are older than settings.audit_keep. With settings.audit_archive it deletes whole '
  'months, once their archive has all of their rows. Called by fleet.prune().';
--! EndIncluded access/prune_audit_log.sql
--! Included access/audit_log.trigger.sql
create or replace trigger audit_log_keep
  before update or delete on fleet.audit_log
  for each row execute function fleet.keep_audit_log();
comment on trigger audit_log_keep on fleet.audit_log is 'Rows can only be added, and be pruned by age.';
create or replace trigger audit_log_keep_all
  before truncate on fleet.audit_log
  for each statement execute function fleet.keep_audit_log();
comment on trigger audit_log_keep_all on fleet.audit_log is 'The table cannot be emptied.';
--! EndIncluded access/audit_log.trigger.sql
--! Included access/settings_audit.view.sql
create or replace view fleet.settings_audit as
select a.audit_id, a.at as changed_at, a.actor as changed_by,
  case when a.action = 'setting.changed' then substr(a.target, length('setting:') + 1) else a.target end as setting,
  a.before #>> '{}' as old_value, a.after #>> '{}' as new_value
from fleet.audit_log a
where a.action in ('setting.changed', 'cohort_interval.changed')
  or a.target like 'webhook:%' and a.action not in ('webhook.tested', 'webhook.retried')
order by a.audit_id;

comment on view fleet.settings_audit is
  'Every change of fleet.settings, of the interval of a cohort and of a webhook: when, by whom, from what, to what. A part of '
  'fleet.audit_log. Example: select * from fleet.settings_audit where setting = ''retention'';';
--! EndIncluded access/settings_audit.view.sql
--! Included access/get_api_key.sql
create or replace function fleet.get_api_key(p_name text) returns fleet.api_credentials
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key fleet.api_credentials;
begin
  select * into v_key from fleet.api_credentials c where c.key_name = p_name for no key update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no API key named %s', coalesce(p_name, 'null')),
      hint = 'select name from fleet.api_keys;';
  end if;
  return v_key;
end
$$;

comment on function fleet.get_api_key(text) is 'The API key of this name, locked until the end of the transaction.';
--! EndIncluded access/get_api_key.sql
--! Included access/create_api_key.sql
create or replace function fleet.create_api_key(
  p_name text,
  p_scopes text[],
  p_cohorts text[] default null,
  p_expires_at timestamptz default null
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_scopes constant text[] := array['read', 'metrics', 'enroll', 'command', 'operate'];
  v_key text := fleet.make_token('nxk_');
  v_scopes text[] := (select array_agg(distinct s order by s) from unnest(p_scopes) s);
  v_cohorts text[] := (select array_agg(distinct c order by c) from unnest(p_cohorts) c);
begin
  -- It is shown as a label of metrics, and ADMIN_KEY is the name of the server's own key.
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$' or p_name = 'ADMIN_KEY' then
    raise exception using
      errcode = 'FL422',
      message = 'name must have 1 to 64 letters, digits, spaces or . _ @ -, begin with a letter or digit, and not be ADMIN_KEY',
      hint = 'Example: select fleet.create_api_key(''grafana'', ''{read}'');';
  end if;
  if v_scopes is null or not v_scopes <@ c_scopes or array_position(v_scopes, null) is not null then
    raise exception using
      errcode = 'FL422',
      message = format('scopes must be some of %s, not %s', array_to_string(c_scopes, ', '), coalesce(p_scopes::text, 'null')),
      hint = 'Example: select fleet.create_api_key(''grafana'', ''{read}'');';
  end if;
  if p_cohorts is not null and (
    v_cohorts is null or cardinality(v_cohorts) > 100 or exists (select from unnest(p_cohorts) c where c is null or btrim(c) = '' or length(c) > 100)
  ) then
    raise exception using
      errcode = 'FL422',
      message = 'cohorts must be null or at most 100 names of 1 to 100 characters',
      hint = 'Example: select fleet.create_api_key(''partner'', ''{read}'', ''{lobby,shop}'');';
  end if;
  if v_cohorts is not null and v_scopes && array['metrics', 'operate'] then
    raise exception using
      errcode = 'FL422',
      message = 'a key with cohorts cannot have the scopes metrics and operate, which are about the whole store',
      hint = 'Leave out these scopes, or leave out the cohorts.';
  end if;
  if p_expires_at <= now() then
    raise exception using
      errcode = 'FL422',
      message = format('expires_at must be in the future, not %s', p_expires_at),
      hint = 'Leave it out for a key that does not expire.';
  end if;
  insert into fleet.api_credentials (key_name, token_hash, scopes, cohorts, created_by, expires_at)
  values (p_name, fleet.hash_token(v_key), v_scopes, v_cohorts, (fleet.current_actor()).actor, p_expires_at)
  on conflict (key_name) do nothing;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('an API key named %s already exists', p_name),
      hint = 'Choose another name: names are unique, including those of revoked keys. For a new key of the same name: '
        'select fleet.rotate_api_key(…);';
  end if;
  perform fleet.audit(
    'api_key.created', 'api_key:' || p_name,
    p_after => jsonb_build_object('scopes', v_scopes, 'cohorts', v_cohorts, 'expires_at', p_expires_at)
  );
  return v_key;
end
$$;

comment on function fleet.create_api_key(text, text[], text[], timestamptz) is
  'Creates an API key and returns it. It is shown only now. Scopes: read (devices and their changes, the ops page), metrics, '
  'enroll (devices and their tokens), command, operate (maintenance, and the buttons of the ops page). With cohorts the key '
  'knows only their devices. Example: select fleet.create_api_key(''partner'', ''{read,command}'', ''{lobby}'');';
--! EndIncluded access/create_api_key.sql
--! Included access/revoke_api_key.sql
create or replace function fleet.revoke_api_key(p_name text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key fleet.api_credentials := fleet.get_api_key(p_name);
begin
  if v_key.revoked_at is not null then
    return false;
  end if;
  update fleet.api_credentials c
  set revoked_at = now(), previous_hash = null, previous_until = null
  where c.key_id = v_key.key_id;
  perform fleet.audit('api_key.revoked', 'api_key:' || p_name);
  return true;
end
$$;

comment on function fleet.revoke_api_key(text) is
  'Revokes an API key, and with it the sessions of the ops page that were opened with it: from the commit on, every server '
  'refuses it. Returns false if it was already revoked. Example: select fleet.revoke_api_key(''partner'');';
--! EndIncluded access/revoke_api_key.sql
--! Included access/rotate_api_key.sql
create or replace function fleet.rotate_api_key(p_name text, p_overlap interval default interval '1 day') returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text := fleet.make_token('nxk_');
  v_old fleet.api_credentials := fleet.get_api_key(p_name);
begin
  if v_old.revoked_at is not null then
    raise exception using
      errcode = 'FL409',
      message = format('the API key %s was revoked at %s', p_name, date_trunc('second', v_old.revoked_at)),
      hint = 'Create a key of another name: select fleet.create_api_key(…);';
  end if;
  if p_overlap is null or p_overlap < interval '0' or p_overlap > interval '30 days' then
    raise exception using
      errcode = 'FL422',
      message = format('overlap must be between 0 and 30 days, not %s', coalesce(p_overlap::text, 'null')),
      hint = 'Example: select fleet.rotate_api_key(''grafana'', ''1 hour''); With 0 the old key stops at once.';
  end if;
  update fleet.api_credentials c
  set token_hash = fleet.hash_token(v_key),
    previous_hash = case when p_overlap > interval '0' then c.token_hash end,
    previous_until = case when p_overlap > interval '0' then now() + p_overlap end
  where c.key_id = v_old.key_id;
  perform fleet.audit('api_key.rotated', 'api_key:' || p_name, p_after => jsonb_build_object('overlap', p_overlap));
  return v_key;
end
$$;

comment on function fleet.rotate_api_key(text, interval) is
  'Gives an API key a new secret, which is shown only now. Until the overlap ends, the one before it is valid, too; any older one '
  'stops at once. Example: select fleet.rotate_api_key(''grafana'', ''1 hour'');';
--! EndIncluded access/rotate_api_key.sql
--! Included access/authenticate_key.sql
create or replace function fleet.authenticate_key(p_hash bytea, p_address text)
returns table (name text, scopes text[], cohorts text[])
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key record;
begin
  select * into v_key from fleet.find_api_key(p_hash);
  if not found then
    return;
  end if;
  -- Once a minute, and never waiting for another request with the same key, or for its rotation.
  update fleet.api_credentials c
  set last_used_at = now(), last_address = p_address
  where c.key_id = (
    select u.key_id
    from fleet.api_credentials u
    where u.key_id = v_key.key_id
      and (u.last_used_at is null or u.last_used_at < now() - interval '1 minute')
    for no key update skip locked
  );
  return query select v_key.name, v_key.scopes, v_key.cohorts;
end
$$;

comment on function fleet.authenticate_key(bytea, text) is
  'Returns the name, the scopes and the cohorts of the API key with this SHA-256, and notes its use. Returns no row if the key is '
  'unknown, revoked or expired. Called by the server for each request with a key.';
--! EndIncluded access/authenticate_key.sql
--! Included access/api_keys.view.sql
create or replace view fleet.api_keys as
select c.key_name as name, c.scopes, c.cohorts,
  case
    when c.revoked_at is not null then 'revoked'
    when c.expires_at <= now() then 'expired'
    else 'valid'
  end as state,
  c.created_at, c.created_by, c.expires_at, c.revoked_at, c.previous_until, c.last_used_at, c.last_address
from fleet.api_credentials c
order by c.key_name;

comment on view fleet.api_keys is
  'The API keys: what they may do, until when, and when and from where they were last used. previous_until: until then the key '
  'from before the last rotation is valid, too. Example: select name, last_used_at from fleet.api_keys where state = ''valid'';';
--! EndIncluded access/api_keys.view.sql
--! Included access/find_session.sql
create or replace function fleet.find_session(p_session bytea)
returns table (actor text, login text, scopes text[], cohorts text[], is_open boolean)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.actor, s.login, coalesce(k.scopes, s.scopes), case when s.key_id is null then s.cohorts else k.cohorts end,
    s.ended_at is null and s.ends_at > now() and (s.key_id is null or k.key_id is not null)
  from fleet.sessions s
  -- Of a key that was revoked, has expired or was replaced, nothing is found.
  left join fleet.api_credentials k on k.key_id = s.key_id and k.revoked_at is null
    and (k.token_hash = s.key_hash or k.previous_hash = s.key_hash and k.previous_until > now())
    and (k.expires_at is null or k.expires_at > now())
  where s.session_hash = p_session;
$$;

comment on function fleet.find_session(bytea) is
  'The session of the ops page with this SHA-256, and whether it is open. A session that was opened with an API key has the '
  'scopes and cohorts of the key, and ends with it.';
--! EndIncluded access/find_session.sql
--! Included access/act.sql
-- Everything is set for the transaction only, because a pool may give the connection to another request afterwards. A session
-- that runs nightly() keeps it across the transactions of that procedure.
create or replace function fleet.act(
  p_how text,
  p_actor text,
  p_credential bytea,
  p_scope text,
  p_request_id text,
  p_address text,
  p_is_local boolean default true
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_scopes text[];
  v_cohorts text[];
begin
  if p_actor is null or btrim(p_actor) = '' then
    raise exception using errcode = 'FL422', message = 'actor must not be empty', hint = 'Name the key or the person.';
  end if;
  if p_credential is not null then
    if p_how = 'key' then
      select k.scopes, k.cohorts into v_scopes, v_cohorts from fleet.find_api_key(p_credential) k;
    else
      select case when s.is_open then s.scopes end, s.cohorts into v_scopes, v_cohorts from fleet.find_session(p_credential) s;
      if not found and p_actor = 'ADMIN_KEY' then
        -- It began while the database was unreachable. The server has checked its signature.
        v_scopes := array[p_scope];
      end if;
    end if;
    -- It was valid when the request came in.
    if v_scopes is null or p_scope <> all (v_scopes) then
      raise exception using
        errcode = 'FL401',
        message = format('the %s was revoked, has ended or may no longer do this', p_how),
        hint = 'Nothing was done. Log in again, or take a valid key.';
    end if;
  end if;
  perform set_config('fleet.how', p_how, p_is_local), set_config('fleet.actor', p_actor, p_is_local),
    set_config('fleet.request_id', coalesce(p_request_id, ''), p_is_local),
    set_config('fleet.address', coalesce(p_address, ''), p_is_local),
    set_config('fleet.cohorts', coalesce(to_jsonb(v_cohorts)::text, ''), p_is_local);
  return true;
end
$$;

comment on function fleet.act(text, text, bytea, text, text, text, boolean) is
  'Says for the rest of the transaction who acts through the server, so that fleet.audit() records it and the functions for '
  'devices know only the cohorts of the key. Checks once more that the key or session is valid and has the scope; the '
  'server''s ADMIN_KEY, as a key, has no hash here. Called in the statement of each deed that comes over HTTP.';
--! EndIncluded access/act.sql
--! Included access/open_session.sql
create or replace function fleet.open_session(
  p_session bytea,
  p_actor text,
  p_login text,
  p_key_hash bytea,
  p_scopes text[],
  p_cohorts text[],
  p_ends_at timestamptz,
  p_address text,
  p_user_agent text,
  p_request_id text
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key_id bigint := (select k.key_id from fleet.find_api_key(p_key_hash) k);
begin
  if p_actor is null or p_actor !~ '^[^[:cntrl:]]+$' or length(p_actor) > 400 or (p_actor = 'ADMIN_KEY') <> (p_login = 'admin_key') then
    raise exception using
      errcode = 'FL422',
      message = 'actor must be a name of 1 to 400 characters, and ADMIN_KEY only with that key',
      hint = 'The identity provider gave somebody another name.';
  end if;
  if p_login = 'api_key' and v_key_id is null then
    return false;
  end if;
  insert into fleet.sessions (session_hash, actor, login, key_id, key_hash, scopes, cohorts, address, user_agent, ends_at)
  values (
    p_session, p_actor, p_login, v_key_id, p_key_hash, p_scopes, p_cohorts, p_address, left(p_user_agent, 200),
    -- No login lasts for longer than a day, whatever p_ends_at says.
    least(p_ends_at, now() + interval '1 day')
  );
  perform fleet.act('session', p_actor, null, null, p_request_id, p_address);
  perform fleet.audit('session.opened', 'session:' || currval(pg_get_serial_sequence('fleet.sessions', 'session_id')),
    p_after => jsonb_build_object('login', p_login, 'scopes', p_scopes, 'cohorts', p_cohorts));
  return true;
end
$$;

comment on function fleet.open_session(bytea, text, text, bytea, text[], text[], timestamptz, text, text, text) is
  'Records a login to the ops page. Takes the SHA-256 of the cookie and of the API key, if it was one. Returns false if that key is '
  'not valid any more. Called by the server.';
--! EndIncluded access/open_session.sql
--! Included access/see_session.sql
create or replace function fleet.see_session(p_session bytea)
returns table (actor text, login text, scopes text[], cohorts text[], is_open boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Once a minute, and never waiting for another request of the same session.
  update fleet.sessions s
  set last_seen_at = now()
  where s.session_id = (
    select u.session_id
    from fleet.sessions u
    where u.session_hash = p_session and u.ended_at is null and u.last_seen_at < now() - interval '1 minute'
    for no key update skip locked
  );
  return query select f.actor, f.login, f.scopes, f.cohorts, f.is_open from fleet.find_session(p_session) f;
end
$$;

comment on function fleet.see_session(bytea) is
  'As fleet.find_session(), and notes that the session was used. Called by the server for each request with a session.';
--! EndIncluded access/see_session.sql
--! Included access/end_session.sql
create or replace function fleet.end_session(
  p_session bytea, p_ends_at timestamptz, p_is_admin boolean, p_request_id text, p_address text
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_session record;
begin
  update fleet.sessions s
  set ended_at = now()
  where s.session_hash = p_session and s.ended_at is null
  returning s.session_id, s.actor into v_session;
  if not found and p_is_admin then
    -- It was opened while the database was unreachable, so it has no row yet.
    insert into fleet.sessions as s (session_hash, actor, login, scopes, ends_at, ended_at)
    values (p_session, 'ADMIN_KEY', 'admin_key', array['read'], least(p_ends_at, now() + interval '1 day'), now())
    on conflict (session_hash) do nothing
    returning s.session_id, s.actor into v_session;
  end if;
  if v_session.session_id is not null then
    perform fleet.act('session', v_session.actor, null, null, p_request_id, p_address);
    perform fleet.audit('session.ended', 'session:' || v_session.session_id);
  end if;
end
$$;

comment on function fleet.end_session(bytea, timestamptz, boolean, text, text) is
  'Ends a session of the ops page on every server. Takes the SHA-256 of the text in its cookie and the time at which it would '
  'expire; one of ADMIN_KEY need not be known yet. Called by the server at logout.';
--! EndIncluded access/end_session.sql
--! Included access/close_session.sql
create or replace function fleet.close_session(p_session_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.sessions s set ended_at = now() where s.session_id = p_session_id and s.ended_at is null and s.ends_at > now();
  if found then
    perform fleet.audit('session.ended', 'session:' || p_session_id);
    return true;
  end if;
  if not exists (select from fleet.sessions s where s.session_id = p_session_id) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no session %s', coalesce(p_session_id::text, 'null')),
      hint = 'select * from fleet.open_sessions;';
  end if;
  return false;
end
$$;

comment on function fleet.close_session(bigint) is
  'Ends a session of the ops page on every server. Returns false if it had already ended. '
  'Example: select fleet.close_session(session_id) from fleet.open_sessions where actor = ''ann@example.com'';';
--! EndIncluded access/close_session.sql
--! Included access/open_sessions.view.sql
create or replace view fleet.open_sessions as
select s.session_id, s.actor, s.login, f.scopes, f.cohorts, s.address, s.user_agent, s.started_at, s.last_seen_at, s.ends_at
from fleet.sessions s
cross join lateral fleet.find_session(s.session_hash) f
where f.is_open
order by s.last_seen_at desc;

comment on view fleet.open_sessions is
  'Who is logged in to the ops page: how, from where, since when, and what the session may do. '
  'Example: select actor, login, last_seen_at from fleet.open_sessions;';
--! EndIncluded access/open_sessions.view.sql
--! Included devices/check_cohort.sql
create or replace function fleet.check_cohort(p_cohort text, p_example text) returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = p_example;
  end if;
  if not fleet.may_reach(p_cohort) then
    raise exception using
      errcode = 'FL403',
      message = format('cohort %s is not one of those to which this key is bound', p_cohort),
      hint = format('It is bound to: %s.',
        (select string_agg(c, ', ' order by c) from jsonb_array_elements_text(current_setting('fleet.cohorts')::jsonb) c));
  end if;
end
$$;

comment on function fleet.check_cohort(text, text) is
  'Raises an error unless this can be the cohort of a device and the key or session that acts knows it.';
--! EndIncluded devices/check_cohort.sql
--! Included devices/get_device.sql
create or replace function fleet.get_device(p_device_id bigint) returns fleet.devices
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device fleet.devices;
begin
  select * into v_device from fleet.devices d where d.device_id = p_device_id for update;
  -- A key that is bound to cohorts does not learn whether there are others.
  if not found or not fleet.may_reach(v_device.cohort) then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  return v_device;
end
$$;

comment on function fleet.get_device(bigint) is
  'The device, locked until the end of the transaction, if the key or session that acts knows it.';
--! EndIncluded devices/get_device.sql
--! Included devices/move_device.sql
create or replace function fleet.move_device(p_device_id bigint, p_cohort text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device fleet.devices := fleet.get_device(p_device_id);
begin
  perform fleet.check_cohort(p_cohort, 'Example: select fleet.move_device(42, ''lobby'');');
  if v_device.cohort = p_cohort then
    return false;
  end if;
  update fleet.devices set cohort = p_cohort where device_id = p_device_id;
  perform fleet.audit('device.moved', 'device:' || p_device_id, to_jsonb(v_device.cohort), to_jsonb(p_cohort));
  perform fleet.record_event(
    'device.moved',
    p_detail => format(
      'device %s (%s): cohort %s, was %s; by %s', p_device_id, v_device.alias, p_cohort, v_device.cohort,
      (fleet.current_actor()).actor
    )
  );
  return true;
end
$$;

comment on function fleet.move_device(bigint, text) is
  'Moves a device to another cohort. The device learns that cohort''s interval from its next answer. Returns false if it is '
  'already there. '
  'Example: select fleet.move_device(42, ''lobby'');';
--! EndIncluded devices/move_device.sql
--! Included devices/rename_device.sql
create or replace function fleet.rename_device(p_device_id bigint, p_alias text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device fleet.devices;
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
  end if;
  v_device := fleet.get_device(p_device_id);
  if v_device.alias = p_alias then
    return false;
  end if;
  begin
    update fleet.devices set alias = p_alias where device_id = p_device_id;
  exception when unique_violation then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias and fleet.may_reach(d.cohort);
    if v_other is null then
      raise exception using
        errcode = 'FL409',
        message = format('another device already has the alias %s; device %s keeps the alias %s', p_alias, p_device_id, v_device.alias),
        hint = 'Choose another alias: aliases are unique in the whole fleet.';
    end if;
    raise exception using
      errcode = 'FL409',
      message = format('device %s already has the alias %s; device %s keeps the alias %s', v_other, p_alias, p_device_id, v_device.alias),
      hint = format(
        'Aliases are unique, including those of revoked devices. '
        'Choose another, or rename the other device first: select fleet.rename_device(%s, %L);',
        v_other, left(p_alias, 190) || ' (old)'
      );
  end;
  perform fleet.audit('device.renamed', 'device:' || p_device_id, to_jsonb(v_device.alias), to_jsonb(p_alias));
  perform fleet.record_event(
    'device.renamed',
    p_detail => format(
      'device %s: %s, was %s; by %s', p_device_id, p_alias, v_device.alias, (fleet.current_actor()).actor
    )
  );
  return true;
end
$$;

comment on function fleet.rename_device(bigint, text) is
  'Gives a device another alias, also if it is revoked. Its token and heartbeats stay. Returns false if it already has that '
  'alias. '
  'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
--! EndIncluded devices/rename_device.sql
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
    insert into fleet.device_commands (device_id, command, payload, created_by)
    select d.device_id, p_command, nullif(p_payload, 'null'), (fleet.current_actor()).actor
    from fleet.devices d
    where d.device_id = p_device_id and d.revoked_at is null and fleet.may_reach(d.cohort)
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
  perform fleet.audit(
    'command.sent', 'device:' || p_device_id,
    -- Not the payload, which may hold secrets and is kept for settings.commands_keep only.
    p_after => jsonb_build_object(
      'command_id', v_command_id, 'command', p_command, 'payload_sha256', encode(sha256(convert_to(p_payload::text, 'UTF8')), 'hex')
    )
  );
  return v_command_id;
end
$$;

comment on function fleet.send_command(bigint, text, jsonb) is
  'Sends a command to a device, which gets it at its next poll. Returns the command_id. '
  'Example: select fleet.send_command(42, ''set_volume'', ''{"percent":30}'');';
--! EndIncluded devices/send_command.sql
--! Included status/fleet_summary_of.sql
create or replace function fleet.fleet_summary_of(p_cohorts text[]) returns setof fleet.fleet_summary
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    with own as materialized (
      select s.* from fleet.fleet_summary s where s.cohort = any (p_cohorts) and s.cohort <> '(all)'
    )
    select '(all)', coalesce(sum(o.devices), 0)::bigint, coalesce(sum(o.online), 0)::bigint, coalesce(sum(o.late), 0)::bigint,
      coalesce(sum(o.offline), 0)::bigint, coalesce(sum(o.new), 0)::bigint, coalesce(sum(o.clock_skewed), 0)::bigint,
      coalesce(sum(o.unity_down), 0)::bigint, coalesce(min(o.counted_at), now())
    from own o
    union all
    (select o.* from own o order by o.cohort);
end
$$;

comment on function fleet.fleet_summary_of(text[]) is
  'As fleet.fleet_summary, of some cohorts; (all) is their sum. Used by the server for sessions that are bound to cohorts. '
  'Example: select * from fleet.fleet_summary_of(''{lobby,shop}'');';
--! EndIncluded status/fleet_summary_of.sql
--! Included status/list_devices_of.sql
create or replace function fleet.list_devices_of(
  p_cohorts text[],
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- A page of each cohort; the first devices of all these are the page.
  select d.*
  from (select distinct c from unnest(p_cohorts) c where p_cohort is null or c = p_cohort) k
  cross join lateral fleet.list_devices(p_status, p_older_than, p_after, p_limit, k.c, p_alias) d
  order by d.device_id
  limit p_limit;
$$;

comment on function fleet.list_devices_of(text[], text, interval, bigint, integer, text, text) is
  'As fleet.list_devices(), of the devices in some cohorts. Used by the server for keys that are bound to cohorts. '
  'Example: select alias from fleet.list_devices_of(''{lobby,shop}'', ''offline'');';
--! EndIncluded status/list_devices_of.sql
--! Included transitions/transitions_of_cohorts.sql
create or replace function fleet.transitions_of_cohorts(
  p_cohorts text[],
  p_after text default null,
  p_limit integer default 100,
  p_cohort text default null
) returns table (
  cursor text, transition_id bigint, device_id bigint, alias text, cohort text, at timestamptz, since timestamptz, event text,
  status text, previous_status text, previous_for interval, reason text, incident_id bigint, battery_pct smallint,
  network_type text, agent_version text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- All see the same snapshot, so none is skipped.
  select t.cursor, t.transition_id, t.device_id,
    -- A device that has moved to another cohort since is not named.
    case when exists (select from fleet.devices d where d.device_id = t.device_id and d.cohort = any (p_cohorts)) then t.alias end,
    t.cohort, t.at, t.since, t.event, t.status, t.previous_status, t.previous_for, t.reason, t.incident_id, t.battery_pct,
    t.network_type, t.agent_version
  from (select distinct c from unnest(p_cohorts) c where p_cohort is null or c = p_cohort) k
  cross join lateral fleet.transitions_after(p_after, p_limit, k.c) t
  order by split_part(t.cursor, '-', 1)::bigint, t.transition_id
  limit p_limit;
$$;

comment on function fleet.transitions_of_cohorts(text[], text, integer, text) is
  'As fleet.transitions_after(), of some cohorts. Used by the server for keys that are bound to cohorts. '
  'Example: select * from fleet.transitions_of_cohorts(''{lobby,shop}'', null, 10);';
--! EndIncluded transitions/transitions_of_cohorts.sql
--! Included partitions/settle_table.sql
-- One transaction, so that a crash leaves either the old partition or the settled one. Readers of the day wait for all of it; see
-- decision 0044. CLUSTER freezes the rows. The job fleet-freeze marks their pages afterwards, because VACUUM cannot run here.
create or replace function fleet.settle_table(p_partition text, p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
-- CLUSTER sorts then. It would read a day that is larger than the memory in random order by the index.
set enable_indexscan = off
as $$
declare
  v_partition fleet.hb_partitions;
  v_table oid;
  v_index oid;
  v_plan record;
  v_rows bigint;
  v_since timestamptz;
begin
  perform fleet.not_in_future(p_now);
  v_partition := fleet.get_partition(p_partition);
  if v_partition.settled_at is not null then
    return 0;
  end if;
  select * into v_plan from fleet.settle_plan(p_now) s where s.partition_name = p_partition;
  if v_plan.action is null or v_plan.action not in ('settle', 'too_large', 'off') then
    raise exception using
      errcode = 'FL002',
      message = format(
        'partition %s is not settled: %s', p_partition,
        coalesce(v_plan.reason, 'heartbeats may still come for it, it is empty, or it is about to be retired')
      ),
      hint = 'The partitions that can be settled are in: select * from fleet.settle_plan();';
  end if;
  v_table := fleet.table_of(v_partition);
  v_index := fleet.newest_index(v_table);
  if v_index is null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s has no index by device and time, and is not settled', p_partition),
      hint = 'See select * from fleet.check_partitions() where check_name = ''partition_indexes'';';
  end if;

  perform fleet.close_partition(p_partition);
  v_since := clock_timestamp();  -- from here on readers wait
  execute format('cluster %s using %I', v_table::regclass, (select c.relname from pg_class c where c.oid = v_index));
  execute format('alter table %s set without cluster', v_table::regclass);
  execute format('analyze %s', v_table::regclass);
  v_rows := (select c.reltuples from pg_class c where c.oid = v_table);
  update fleet.hb_partitions
  set settled_at = clock_timestamp(), bytes_size = pg_total_relation_size(v_table)
  where partition_name = p_partition;
  perform fleet.record_event('partition.settle', p_partition, v_rows, fleet.elapsed_ms(v_since));
  return v_rows;
end
$$;

comment on function fleet.settle_table(text, timestamptz) is
  'Does what fleet.settle_partition() says, which also records who asked for it. Called directly by fleet.nightly().';
--! EndIncluded partitions/settle_table.sql
--! Included partitions/unsettle_table.sql
-- The key comes back before the constraint goes, so there is no moment in which a duplicate could be stored. Readers wait only
-- for the second one. If the constraint was dropped by hand, the partition takes rows, and only the key is missing.
create or replace function fleet.unsettle_table(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  c_tries constant integer := 40;
  v_partition fleet.hb_partitions;
  v_table oid;
  v_has_key boolean := false;
  v_is_settled boolean;
  v_duplicate text;
  v_since timestamptz := clock_timestamp();
begin
  for v_try in 1..c_tries loop
    begin
      if v_has_key then
        execute format('alter table %s drop constraint device_heartbeats_settled', v_table::regclass);
        exit;
      end if;
      v_partition := fleet.get_partition(p_partition);
      v_table := fleet.table_of(v_partition);
      if v_partition.state not in ('active', 'restored') or v_table is null then
        raise exception using
          errcode = 'FL002',
          message = format('partition %s is %s, and takes no heartbeats', p_partition, v_partition.state),
          hint = 'Only a partition that is online can be opened. An archived day: select fleet.request_restore(day);';
      end if;
      v_is_settled := fleet.is_settled(v_table);
      if fleet.dedupe_index(v_table) is null then
        execute format('create unique index on %s using btree %s', v_table::regclass, fleet.dedupe_key());
      elsif not v_is_settled then
        update fleet.hb_partitions
        set settled_at = null
        where partition_name = p_partition and settled_at is not null;
        return false;
      end if;
      exit when not v_is_settled;
      v_has_key := true;
    exception when lock_not_available then
      if v_try = c_tries then
        raise exception using
          errcode = 'FL003',
          message = format('partition %s is in use: %s attempts to open it failed', p_partition, c_tries),
          hint = 'Nothing has changed. Try again when the long queries over that day have ended; see fleet.end_overdue_readers().';
      end if;
      perform pg_sleep(0.1);
    when unique_violation then
      get stacked diagnostics v_duplicate = pg_exception_detail;
      raise exception using
        errcode = 'FL002',
        message = format('partition %s took duplicates while it had no dedupe key, and is not opened', p_partition),
        detail = v_duplicate,
        hint = format(
          'As a superuser delete them, and open it again: %s select fleet.unsettle_partition(%L);',
          fleet.remove_duplicates(p_partition), p_partition
        );
    end;
  end loop;
  update fleet.hb_partitions
  set settled_at = null
  where partition_name = p_partition;
  perform fleet.record_event('partition.unsettle', p_partition, p_duration_ms => fleet.elapsed_ms(v_since));
  return true;
end
$$;

comment on function fleet.unsettle_table(text) is
  'Does what fleet.unsettle_partition() says, which also records who asked for it. Called directly by fleet.maintain(), imports '
  'and the replay of the quarantine.';
--! EndIncluded partitions/unsettle_table.sql
--! Included partitions/add_partitions.sql
create or replace function fleet.add_partitions(p_from date, p_to date) returns setof text
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

comment on function fleet.add_partitions(date, date) is
  'Does what fleet.create_partitions() says, which also records who asked for it. Called directly by fleet.maintain(), imports '
  'and fleet.set_cadence().';
--! EndIncluded partitions/add_partitions.sql
--! Included partitions/create_partitions.sql
create or replace function fleet.create_partitions(p_from date, p_to date) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[] := array(select a from fleet.add_partitions(p_from, p_to) a);
begin
  if cardinality(v_names) > 0 then
    perform fleet.audit(
      'partitions.created', format('partitions:%s/%s', p_from, p_to),
      p_after => jsonb_build_object(
        'partitions', cardinality(v_names), 'first', v_names[1], 'last', v_names[cardinality(v_names)]
      )
    );
  end if;
  return query select unnest(v_names);
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Creates the partitions that are missing between two days, both included, and returns their names. Skips retired days, which '
  'fleet.request_restore() brings back. Example: select fleet.create_partitions(current_date, current_date + 30);';
--! EndIncluded partitions/create_partitions.sql
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
  perform fleet.add_partitions(v_from, v_to);

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
    perform fleet.add_partitions(v_end, v_first - 1);
  end if;

  update fleet.settings set cadence = p_cadence;
  perform fleet.configure_partman();
  -- The first partition of the new width, from which pg_partman continues.
  perform fleet.add_partitions(v_first, greatest(v_first, p_now::date + v_settings.premake_days));
  return format(
    'cadence %s (was %s) from %s on; partitions before that stay as they are', p_cadence, v_settings.cadence, v_first
  );
end
$$;

comment on function fleet.set_cadence(text, timestamptz) is
  'Sets whether partitions hold a day or a month, from the first day that has no partition yet (monthly: from the first whole '
  'month). Example: select fleet.set_cadence(''monthly'');';
--! EndIncluded partitions/set_cadence.sql
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
  if v_partition.held_reason is distinct from p_reason then
    update fleet.hb_partitions
    set held_reason = p_reason, held_by = (fleet.current_actor()).actor
    where partition_name = p_partition;
    perform fleet.record_event('partition.hold', p_partition, p_detail => p_reason);
    perform fleet.audit(
      'partition.held', 'partition:' || p_partition,
      case when v_partition.held_reason is not null then
        jsonb_build_object('reason', v_partition.held_reason, 'held_by', v_partition.held_by)
      end,
      jsonb_build_object('reason', p_reason)
    );
  end if;
  return format('partition %s is held: %s', p_partition, p_reason);
end
$$;

comment on function fleet.hold_partition(text, text) is
  'Keeps a partition from being retired, archived or dropped until it is released. '
  'Example: select fleet.hold_partition(partition_name, ''legal hold'') from fleet.partition_health '
  'where range_start <= current_date - 30 and range_end > current_date - 30;';
--! EndIncluded partitions/hold_partition.sql
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
  perform fleet.audit(
    'partition.released', 'partition:' || p_partition,
    jsonb_strip_nulls(
      jsonb_build_object('state', v_partition.state, 'reason', v_partition.held_reason, 'held_by', v_partition.held_by)
    )
  );
  return format('partition %s is released', p_partition);
end
$$;

comment on function fleet.release_partition(text) is
  'Ends the hold of a partition, or the stay of a restored day. '
  'Example: select fleet.release_partition(partition_name) from fleet.partition_health where held_reason = ''legal hold'';';
--! EndIncluded partitions/release_partition.sql
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
  -- It was the only copy online, so this is recorded whoever did it, the archiver too.
  perform fleet.audit(
    'partition.dropped', 'partition:' || p_partition,
    jsonb_build_object('rows', v_partition.row_count, 'table', case when p_table is null then 'was gone' else 'dropped' end),
    jsonb_build_object('archive_url', v_partition.archive_url, 'sha256', v_partition.checksum_sha256)
  );
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
--! Included availability/roll_up_day.sql
-- Each statement here sees what was committed before it began. So a late arrival is either deleted by the statement that counts
-- it, or it stays.
create or replace function fleet.roll_up_day(p_day date, p_now timestamptz default now(), p_late_only boolean default false)
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

comment on function fleet.roll_up_day(date, timestamptz, boolean) is
  'Does what fleet.roll_up() says, which also records who asked for it. Called directly by fleet.nightly() and '
  'fleet.maintain().';
--! EndIncluded availability/roll_up_day.sql
--! Included availability/roll_up.sql
create or replace function fleet.roll_up(p_day date, p_now timestamptz default now(), p_late_only boolean default false)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_devices integer := fleet.roll_up_day(p_day, p_now, p_late_only);
begin
  if not p_late_only or v_devices > 0 then
    perform fleet.audit(
      'day.rolled_up', 'day:' || p_day, p_after => jsonb_build_object('devices', v_devices, 'late_only', p_late_only)
    );
  end if;
  return v_devices;
end
$$;

comment on function fleet.roll_up(date, timestamptz, boolean) is
  'Counts the availability of each device on one past UTC day from its heartbeats, stores it in '
  'fleet.device_availability_daily, and returns the number of devices. With p_late_only, counts again only the devices of a '
  'rolled-up day whose heartbeats came late. Called by fleet.nightly() and fleet.maintain(). '
  'Example: select fleet.roll_up(current_date - 1);';
--! EndIncluded availability/roll_up.sql
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
    v_count := v_count + fleet.roll_up_day(v_due.day, v_now, v_due.action = 'rebuild');
  end loop;
  return v_count;
end
$$;

comment on function fleet.finish_rollups(text) is
  'Rolls up the days of a retired partition that are not rolled up yet, and counts its late arrivals. Does nothing if '
  'everything is up to date. Called before the partition is exported, and before it is dropped.';
--! EndIncluded availability/finish_rollups.sql
--! Included ingest/replay_heartbeats.sql
-- Each batch goes through fleet.ingest_batch() again, with the time at which it arrived. Heartbeats that are acceptable now (their
-- partition exists, or max_late was raised) are stored. The rest stays.
create or replace function fleet.replay_heartbeats(
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
  v_partition text;
  v_batch record;
  v_stored bigint;
  v_duplicate bigint;
  v_settings fleet.settings;
  v_days timestamptz[];
  v_online tstzmultirange;
  v_ids bigint[];
  v_tss timestamptz[];
  v_reasons text[];
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
  select * into strict v_settings from fleet.settings;
  v_days := array(
    select distinct date_trunc('day', q.ts)
    from fleet.heartbeat_quarantine q
    where q.ts >= p_from and q.ts < p_to
      and (p_device_id is null or q.device_id = p_device_id)
      and q.ts >= q.received_at - least(v_settings.max_late, v_settings.retention) and q.ts <= q.received_at + v_settings.max_future
  );
  for v_partition in
    select p.partition_name
    from fleet.hb_partitions p
    where p.settled_at is not null and p.state in ('active', 'restored')
      and exists (select from unnest(v_days) d where d >= p.range_start and d < p.range_end)
    order by p.range_start
  loop
    perform fleet.unsettle_table(v_partition);
  end loop;
  v_online := (
    select range_agg(tstzrange(p.range_start, p.range_end))
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.relid is not null
  );
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
      and v_online @> q.ts
    group by q.received_at
    order by q.received_at
  loop
    select count(*) filter (where a.result = 'stored'), count(*) filter (where a.result = 'duplicate'),
      array_agg(a.device_id) filter (where a.is_in), array_agg(a.ts) filter (where a.is_in),
      array_agg(a.reason) filter (where a.is_in)
    into v_stored, v_duplicate, v_ids, v_tss, v_reasons
    from (
      select r.result, k.device_id, k.ts, k.reason, r.result in ('stored', 'duplicate') as is_in
      from fleet.ingest_batch(v_batch.items, v_batch.received_at) b
      cross join lateral unnest(b.results, b.tss) with ordinality as i (result, ts, item)
      cross join lateral (select coalesce(i.result, 'stored') as result) r
      join unnest(v_batch.device_ids, v_batch.tss, v_batch.reasons) with ordinality as k (device_id, ts, reason, item)
        on k.item = i.item
    ) a;
    delete from fleet.heartbeat_quarantine q
    using unnest(v_ids, v_tss, v_reasons) as a (device_id, ts, reason)
    where q.device_id = a.device_id and q.ts = a.ts and q.reason = a.reason;
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

comment on function fleet.replay_heartbeats(timestamptz, timestamptz, bigint) is
  'Does what fleet.replay_quarantine() says, which also records who asked for it. Called directly by fleet.maintain().';
--! EndIncluded ingest/replay_heartbeats.sql
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
    perform fleet.audit(
      'partition.archive_requested', 'partition:' || p_partition, jsonb_build_object('state', v_partition.state)
    );
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
      p_detail => format(
        'by %s: the table differs from its archive, which has %s rows', (fleet.current_actor()).actor, v_partition.row_count
      )
    );
    perform fleet.audit(
      'partition.archive_retried', 'partition:' || p_partition,
      jsonb_build_object('state', v_partition.state, 'rows', v_partition.row_count),
      jsonb_build_object('rows', v_found.row_count)
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
  if found then
    perform fleet.audit(
      'partition.archive_retried', 'partition:' || p_partition,
      jsonb_build_object('state', v_partition.state, 'attempts', v_partition.attempts)
    );
  end if;
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s is waiting for the archiver', p_partition);
end
$$;

comment on function fleet.retry_archive(text) is
  'Makes the archiver retry a failed partition at once, or archive a partition again whose table was changed after its proof. '
  'Example: select fleet.retry_archive(partition_name) from fleet.partition_health where state = ''archive_failed'';';
--! EndIncluded archive/retry_archive.sql
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
  perform fleet.audit(
    'restore.requested', 'restore:' || v_request_id, p_after => jsonb_build_object('from', p_from, 'to', v_to)
  );
  perform pg_notify('fleet_archiver', 'restore');
  return v_request_id;
end
$$;

comment on function fleet.request_restore(date, date) is
  'Asks the archiver to bring archived days back online, and returns the number of the request. Follow it in '
  'fleet.restore_items. '
  'Example: select fleet.request_restore(day) from fleet.data_coverage where "where" = ''archived'' order by day desc limit 1;';
--! EndIncluded archive/request_restore.sql
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
  if updated > 0 then
    perform fleet.audit(
      'last_status.backfilled', 'last_status:all', p_after => jsonb_build_object('days', p_days, 'updated', updated)
    );
  end if;
  perform fleet.record_event('backfill.completed', p_rows => updated);
end
$$;

comment on function fleet.backfill_last_status(integer) is
  'Fills last status from the stored heartbeats of the last p_days days, for all devices. '
  'Example: select fleet.backfill_last_status(7);';
--! EndIncluded status/backfill_last_status.sql
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
  if updated > 0 and not fleet.is_scheduled_run() then
    perform fleet.audit(
      'last_status.reconciled', 'last_status:all', p_after => jsonb_build_object('window', p_window, 'updated', updated)
    );
  end if;
  perform fleet.record_event('reconciliation.completed', p_rows => updated, p_duration_ms => elapsed_ms);
end
$$;

comment on function fleet.reconcile(interval, integer) is
  'Repairs last status where it is behind the stored heartbeats of a window; the newest heartbeat wins. What exceeds p_max_rows '
  'is left to the next run, which continues from there. Run hourly. '
  'Example: select * from fleet.reconcile();';
--! EndIncluded status/reconcile.sql
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
  perform fleet.audit('gateway.created', 'gateway:' || p_name);
  return v_token;
end
$$;

comment on function fleet.create_gateway_token(text) is
  'Creates a token that may post heartbeats for any enrolled device. It is shown only now. '
  'Example: select fleet.create_gateway_token(''warehouse-3'');';
--! EndIncluded devices/create_gateway_token.sql
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
    perform fleet.record_event('import.resume', p_detail => format('%s, pass %s, by %s', a.source, v_old.pass, (fleet.current_actor()).actor));
    perform fleet.audit('import.resumed', 'import:' || a.source);
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
  perform fleet.record_event('import.start', p_detail => format('%s, by %s', a.source, (fleet.current_actor()).actor));
  perform fleet.audit(
    'import.begun', 'import:' || a.source,
    p_after => jsonb_build_object(
      'columns', a.columns, 'unknown_devices', a.unknown_devices, 'oldest', a.oldest, 'forward', a.forwards
    )
  );
  return a.source;
end
$$;

comment on function fleet.begin_import(regclass, jsonb, text, timestamptz, boolean) is
  'Begins the import of a table, or resumes it where it stopped. Called by fleet.import_table().';
--! EndIncluded import/begin_import.sql
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
  perform fleet.audit('import.verification_begun', 'import:' || a.source);
  return a.source;
end
$$;

comment on function fleet.begin_verification(regclass) is
  'Begins the verification of an import. Called by fleet.verify_import().';
--! EndIncluded import/begin_verification.sql
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
  perform fleet.audit('import.abandoning_begun', 'import:' || a.source, jsonb_build_object('state', a.state));
  return a.source;
end
$$;

comment on function fleet.begin_abandoning(regclass) is
  'Begins to abandon the import of a table. Called by fleet.abandon_import().';
--! EndIncluded import/begin_abandoning.sql
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
  perform fleet.record_event('import.forgotten', p_detail => format('%s, by %s', p_source, (fleet.current_actor()).actor));
  perform fleet.audit('import.forgotten', 'import:' || p_source, jsonb_build_object('state', a.state));
  return true;
end
$$;

comment on function fleet.forget_import(text) is
  'Deletes what is recorded about the import of a table, once the import is confirmed or abandoned or the table is gone; false '
  'if nothing is recorded. Heartbeats stay. Example: select fleet.forget_import(''public.device_heartbeats'');';
--! EndIncluded import/forget_import.sql
--! Included import/audit_import_devices.sql
create or replace function fleet.audit_import_devices() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 100;
  v_changes jsonb;
  v_old text := 'was';
  v_new text := 'is_now';
begin
  if tg_op = 'INSERT' then
    -- By EXECUTE, because each trigger has other transition tables, and plpgsql_check looks at all branches.
    execute format('select jsonb_agg(jsonb_build_object(''after'', to_jsonb(n))) from %I n', v_new) into v_changes;
  elsif tg_op = 'DELETE' then
    execute format('select jsonb_agg(jsonb_build_object(''before'', to_jsonb(o))) from %I o', v_old) into v_changes;
  else
    execute format('
      select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(''before'', to_jsonb(o), ''after'', to_jsonb(n))))
      from %I o
      full join %I n using (source, source_device)
      where to_jsonb(o) is distinct from to_jsonb(n)
    ', v_old, v_new) into v_changes;
  end if;
  perform fleet.audit(
    g.action, 'import:' || g.source,
    case when g.devices <= c_most then c.before - 'source' end,
    case when g.devices <= c_most then c.after - 'source' else jsonb_build_object('devices', g.devices) end
  )
  from (
    select a.source, a.action, count(*) as devices, array_agg(a.change) as changes
    from (
      select e as change, coalesce(e -> 'before', e -> 'after') ->> 'source' as source,
        case
          when e -> 'before' is null then 'import_device.mapped'
          when e -> 'after' is null then 'import_device.unmapped'
          else 'import_device.changed'
        end as action
      from jsonb_array_elements(v_changes) e
    ) a
    group by a.source, a.action
  ) g
  cross join lateral (
    select e -> 'before' as before, e -> 'after' as after
    from unnest(g.changes) e
    limit case when g.devices <= c_most then c_most else 1 end
  ) c;
  return null;
end
$$;

comment on function fleet.audit_import_devices() is
  'Trigger on fleet.import_devices: records what is written by hand in fleet.audit_log, with a row for each device, or one row for '
  'more than 100.';
--! EndIncluded import/audit_import_devices.sql
--! Included import/import_devices.trigger.sql
-- The functions of imports run as the owner.
create or replace trigger import_devices_audit_insert
  after insert on fleet.import_devices
  referencing new table as is_now
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_import_devices();
comment on trigger import_devices_audit_insert on fleet.import_devices is 'Records an INSERT by hand in fleet.audit_log.';

create or replace trigger import_devices_audit_update
  after update on fleet.import_devices
  referencing old table as was new table as is_now
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_import_devices();
comment on trigger import_devices_audit_update on fleet.import_devices is 'Records an UPDATE by hand in fleet.audit_log.';

create or replace trigger import_devices_audit_delete
  after delete on fleet.import_devices
  referencing old table as was
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_import_devices();
comment on trigger import_devices_audit_delete on fleet.import_devices is 'Records a DELETE by hand in fleet.audit_log.';
--! EndIncluded import/import_devices.trigger.sql
--! Included jobs/audit_unlock.sql
-- fleet.force_unlock() runs with the rights of its caller and may not write to fleet.audit_log itself.
create or replace function fleet.audit_unlock(p_lock text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select fleet.audit(
    'lock.forced', 'lock:' || p_lock, jsonb_build_object('pid', a.pid, 'login', a.usename, 'since', a.query_start)
  )
  from fleet.lock_holders(p_lock) h
  join pg_stat_activity a on a.pid = h
  where h <> pg_backend_pid();
$$;

comment on function fleet.audit_unlock(text) is
  'Records in fleet.audit_log that the backends that hold a lock are going to be ended. Called by fleet.force_unlock().';
--! EndIncluded jobs/audit_unlock.sql
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
  perform fleet.audit_unlock(p_lock);
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
  c_jobs constant text :=
    'select jsonb_object_agg(j.jobname, j.schedule || '' '' || j.command) from cron.job j
    where j.jobname like ''fleet-%'' and j.username = current_user';
  v_job record;
  v_before jsonb;
  v_after jsonb;
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

  execute c_jobs into v_before;
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
  execute c_jobs into v_after;
  if v_after is distinct from v_before then
    perform fleet.audit('jobs.scheduled', 'jobs:pg_cron', v_before, v_after);
  end if;
  -- A job that somebody has disabled stays so.
  return query execute $active$
    select d.jobname, d.schedule, d.command, j.active
    from fleet.job_definitions() d
    join cron.job j on j.jobname = d.jobname and j.username = current_user
  $active$;
end
$$;

comment on function fleet.schedule_jobs() is
  'Schedules the jobs of fleet.job_definitions() with pg_cron, as their owner; may be called again. is_scheduled is false for one '
  'that is disabled, which stays so. If pg_cron is in another database, notices say what to run there. Example: select * from fleet.schedule_jobs();';
--! EndIncluded jobs/schedule_jobs.sql
--! Included jobs/audit_settings.sql
create or replace function fleet.audit_settings() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  perform fleet.audit('setting.changed', 'setting:' || n.key, to_jsonb(o.value), to_jsonb(n.value))
  from jsonb_each_text(to_jsonb(new)) n
  join jsonb_each_text(to_jsonb(old)) o using (key)
  where n.value is distinct from o.value
  order by n.key;
  return null;
end
$$;

comment on function fleet.audit_settings() is 'Trigger on fleet.settings: records every change in fleet.audit_log.';
--! EndIncluded jobs/audit_settings.sql
--! Included jobs/settings.trigger.sql
create or replace trigger settings_audit
  after update on fleet.settings
  for each row execute function fleet.audit_settings();

comment on trigger settings_audit on fleet.settings is 'Records every change in fleet.audit_log.';
--! EndIncluded jobs/settings.trigger.sql

-- Who acts through the server is named there, too.
alter table fleet.webhooks alter created_by set default (fleet.current_actor()).actor;
alter table fleet.restore_requests alter requested_by set default (fleet.current_actor()).actor;
alter table fleet.erasures alter requested_by set default (fleet.current_actor()).actor;
alter table fleet.imports alter started_by set default (fleet.current_actor()).actor;

-- Logins that see only their cohorts: the functions that policies and views call, and then the policies and views
--! Included access/readers.policies.sql
-- Row-level security for the logins of fleet.create_reader(). For everybody else the first policy is the only one and always
-- true, so the planner drops it. The second one must hold too, but only for members of fleet_cohort_reader. The partitions of
-- fleet.device_heartbeats have no policies: nobody but the roles that see everything has rights on them; see grants.sql.
do $$
declare
  v_table record;
begin
  for v_table in
    select t.name, case when t.has_cohort
      then 'cohort = any ((select fleet.seen_cohorts())::text[])'
      else format(
        'exists (select from fleet.devices d where d.device_id = %I.device_id and d.cohort = any ((select fleet.seen_cohorts())::text[]))',
        t.name
      )
    end as condition
    from (values
      ('devices', true),
      ('cohorts', true),
      ('fleet_counts', true),
      ('device_transitions', true),
      ('device_last_status', false),
      ('device_heartbeats', false),
      ('device_commands', false),
      ('command_dispatch_log', false),
      ('device_availability_daily', false),
      ('device_unreadable_fields', false)
    ) as t (name, has_cohort)
  loop
    execute format('alter table fleet.%I enable row level security', v_table.name);
    execute format('drop policy if exists everybody on fleet.%I', v_table.name);
    execute format('create policy everybody on fleet.%I to public using (true) with check (true)', v_table.name);
    execute format(
      'comment on policy everybody on fleet.%I is ''Rights alone decide, except for members of fleet_cohort_reader.''', v_table.name
    );
    execute format('drop policy if exists seen_cohorts on fleet.%I', v_table.name);
    -- Citus refuses policies with subqueries; a distributed store has no such logins.
    continue when fleet.is_distributed();
    execute format(
      'create policy seen_cohorts on fleet.%I as restrictive to fleet_cohort_reader using (%s)', v_table.name, v_table.condition
    );
    execute format(
      'comment on policy seen_cohorts on fleet.%I is ''A login of fleet.create_reader() sees only the devices of its cohorts.''',
      v_table.name
    );
  end loop;
end
$$;
--! EndIncluded access/readers.policies.sql
--! Included availability/device_availability.view.sql
create or replace view fleet.device_availability with (security_invoker = true) as
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
--! Included access/hmac_pad.sql
create or replace function fleet.hmac_pad(p_key bytea, p_byte integer) returns bytea
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_pad bytea := case when length(p_key) > 64 then sha256(p_key) else p_key end;
begin
  v_pad := v_pad || decode(repeat('00', 64 - length(v_pad)), 'hex');
  for v_i in 0..63 loop
    v_pad := set_byte(v_pad, v_i, get_byte(v_pad, v_i) # p_byte);
  end loop;
  return v_pad;
end
$$;

comment on function fleet.hmac_pad(bytea, integer) is
  'The key of an HMAC with SHA-256 (RFC 2104), padded to 64 bytes, each of them XOR a byte: the inner pad with 54 (0x36), the '
  'outer one with 92 (0x5c). The HMAC is sha256(outer || sha256(inner || text)).';
--! EndIncluded access/hmac_pad.sql
--! Included access/scram_verifier.sql
-- Only assignments of plpgsql, no statements: Postgres can log the parameters of a statement, and so the password
-- (auto_explain.log_nested_statements).
create or replace function fleet.scram_verifier(p_password text, p_salt bytea default null) returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_iterations constant integer := 4096;
  v_salt bytea := coalesce(
    p_salt, substring(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) from 1 for 16)
  );
  v_inner bytea := fleet.hmac_pad(convert_to(p_password, 'UTF8'), 54);
  v_outer bytea := fleet.hmac_pad(convert_to(p_password, 'UTF8'), 92);
  v_round bytea;
  v_sum bit(256);
  v_salted bytea := '\x'::bytea;
  v_client_key bytea;
  v_server_key bytea;
begin
  if p_password is null or p_password !~ '^[\x21-\x7e]{1,200}$' then
    raise exception using
      errcode = 'FL422',
      message = 'a password must have 1 to 200 characters of ASCII without spaces',
      hint = 'Other characters are not the same bytes for all clients.';
  end if;
  -- PBKDF2 (RFC 8018) for one block.
  v_round := sha256(v_outer || sha256(v_inner || v_salt || '\x00000001'::bytea));
  v_sum := ('x' || encode(v_round, 'hex'))::bit(256);
  for v_i in 2..c_iterations loop
    v_round := sha256(v_outer || sha256(v_inner || v_round));
    v_sum := v_sum # ('x' || encode(v_round, 'hex'))::bit(256);
  end loop;
  for v_i in 0..7 loop
    v_salted := v_salted || int4send(substring(v_sum from 1 + 32 * v_i for 32)::integer);
  end loop;

  v_inner := fleet.hmac_pad(v_salted, 54);
  v_outer := fleet.hmac_pad(v_salted, 92);
  v_client_key := sha256(v_outer || sha256(v_inner || 'Client Key'::bytea));
  v_server_key := sha256(v_outer || sha256(v_inner || 'Server Key'::bytea));
  return format(
    'SCRAM-SHA-256$%s:%s$%s:%s', c_iterations, encode(v_salt, 'base64'), encode(sha256(v_client_key), 'base64'),
    encode(v_server_key, 'base64')
  );
end
$$;

comment on function fleet.scram_verifier(text, bytea) is
  'What Postgres stores instead of a password (SCRAM-SHA-256, RFC 5802 and 7677), so that a role can be given one without the '
  'password in a statement or a log. Without p_salt the salt is random.';
--! EndIncluded access/scram_verifier.sql
--! Included access/reader_cohorts.sql
create or replace function fleet.reader_cohorts(p_cohorts text[]) returns text[]
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(cardinality(p_cohorts), 0) = 0 or cardinality(p_cohorts) > 1000 or exists (
    select from unnest(p_cohorts) c where c is null or btrim(c) = '' or length(c) > 100
  ) then
    raise exception using
      errcode = 'FL422',
      message = 'cohorts must have 1 to 1000 names of 1 to 100 characters',
      hint = 'Example: array[''lobby'', ''warehouse'']. Who may see every cohort gets a login with the rights of fleet_reader.';
  end if;
  if '(all)' = any (p_cohorts) then
    raise exception using
      errcode = 'FL422',
      message = 'cohorts must not name (all)',
      hint = 'In fleet.fleet_summary that is the whole fleet. Who may see it gets a login with the rights of fleet_reader.';
  end if;
  return array(select distinct c from unnest(p_cohorts) c order by c);
end
$$;

comment on function fleet.reader_cohorts(text[]) is
  'The cohorts for a reader, each once and in order. Fails if there are none or one cannot be the name of a cohort. They need not '
  'exist yet.';
--! EndIncluded access/reader_cohorts.sql
--! Included access/no_such_reader.sql
create or replace function fleet.no_such_reader(p_name text) returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'FL404',
    message = format('there is no reader named %s', coalesce(p_name, 'null')),
    hint = 'They are in select reader from fleet.reader_logins;';
end
$$;

comment on function fleet.no_such_reader(text) is 'Fails because no reader has this name.';
--! EndIncluded access/no_such_reader.sql
--! Included access/require_reader_logins.sql
create or replace function fleet.require_reader_logins() returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regprocedure('fleet_guard.create_reader(text, text)') is null then
    raise exception using
      errcode = 'FL002',
      message = 'the functions that make logins are missing in this database',
      hint = 'As an administrator who may create roles: psql -f sql/setup/reader-logins.sql';
  end if;
end
$$;

comment on function fleet.require_reader_logins() is
  'Fails if the administrator has not run sql/setup/reader-logins.sql.';
--! EndIncluded access/require_reader_logins.sql
--! Included access/create_reader.sql
create or replace function fleet.create_reader(p_name text, p_cohorts text[]) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Assigned and never in a statement, which could be logged with its parameters.
  v_password text := fleet.make_token('nxr_');
  v_verifier text := fleet.scram_verifier(v_password);
  v_cohorts text[] := fleet.reader_cohorts(p_cohorts);
begin
  if fleet.is_distributed() then
    raise exception using
      errcode = 'FL002',
      message = 'this store is distributed, and only a plain store can have logins that see some cohorts',
      hint = 'Give the partner an API key instead: select fleet.create_api_key(…, p_cohorts => array[…]); See docs/scale-out.md.';
  end if;
  perform fleet.require_reader_logins();
  if exists (select from fleet.readers r where r.reader = p_name) then
    raise exception using
      errcode = 'FL409',
      message = format('a reader named %s already exists', p_name),
      hint = format('Choose another name, or change this one: select fleet.set_reader_cohorts(%1$L, …); '
        'or select fleet.renew_reader_password(%1$L);', p_name);
  end if;
  perform fleet_guard.create_reader(p_name, v_verifier);
  insert into fleet.readers (reader, cohorts) values (p_name, v_cohorts);
  perform fleet.audit(
    p_action => 'reader.created', p_target => 'reader:' || p_name, p_before => null::jsonb,
    p_after => jsonb_build_object('cohorts', v_cohorts)
  );
  return v_password;
end
$$;

comment on function fleet.create_reader(text, text[]) is
  'Makes a login of Postgres that reads the devices of these cohorts and nothing else, such as for the dashboard of a partner. '
  'Returns its password, which is shown only now. The cohorts need not exist yet. Logins can see each other''s names. '
  'Example: select fleet.create_reader(''acme_dashboard'', array[''acme'']);';
--! EndIncluded access/create_reader.sql
--! Included access/set_reader_cohorts.sql
create or replace function fleet.set_reader_cohorts(p_name text, p_cohorts text[]) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_cohorts text[] := fleet.reader_cohorts(p_cohorts);
  v_before text[];
begin
  select r.cohorts into v_before from fleet.readers r where r.reader = p_name for update;
  if not found then
    perform fleet.no_such_reader(p_name);
  end if;
  if v_before = v_cohorts then
    return false;
  end if;
  update fleet.readers set cohorts = v_cohorts where reader = p_name;
  perform fleet.audit(
    p_action => 'reader.changed', p_target => 'reader:' || p_name, p_before => jsonb_build_object('cohorts', v_before),
    p_after => jsonb_build_object('cohorts', v_cohorts)
  );
  return true;
end
$$;

comment on function fleet.set_reader_cohorts(text, text[]) is
  'Changes the cohorts of a reader, from its next statement on. Returns false if they are the same. '
  'Example: select fleet.set_reader_cohorts(''acme_dashboard'', array[''acme'', ''acme-lab'']);';
--! EndIncluded access/set_reader_cohorts.sql
--! Included access/renew_reader_password.sql
create or replace function fleet.renew_reader_password(p_name text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Assigned and never in a statement, which could be logged with its parameters.
  v_password text := fleet.make_token('nxr_');
  v_verifier text := fleet.scram_verifier(v_password);
begin
  perform fleet.require_reader_logins();
  perform from fleet.readers r where r.reader = p_name for update;
  if not found then
    perform fleet.no_such_reader(p_name);
  end if;
  -- A dump has the row but not the login.
  if not fleet_guard.set_reader_password(p_name, v_verifier) then
    perform fleet_guard.create_reader(p_name, v_verifier);
  end if;
  perform fleet.audit(
    p_action => 'reader.password_renewed', p_target => 'reader:' || p_name, p_before => null::jsonb, p_after => null::jsonb
  );
  return v_password;
end
$$;

comment on function fleet.renew_reader_password(text) is
  'Gives a reader another password, which is shown only now, and ends its sessions. Makes its login again if that is missing, as '
  'after a dump was restored into another cluster. Example: select fleet.renew_reader_password(''acme_dashboard'');';
--! EndIncluded access/renew_reader_password.sql
--! Included access/drop_reader.sql
create or replace function fleet.drop_reader(p_name text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_cohorts text[];
  v_is_known boolean;
  v_is_dropped boolean;
begin
  perform fleet.require_reader_logins();
  delete from fleet.readers r where r.reader = p_name returning r.cohorts into v_cohorts;
  v_is_known := found;
  v_is_dropped := fleet_guard.drop_reader(p_name);
  if not v_is_known and not v_is_dropped then
    perform fleet.no_such_reader(p_name);
  end if;
  perform fleet.audit(
    p_action => 'reader.dropped', p_target => 'reader:' || p_name, p_before => jsonb_build_object('cohorts', v_cohorts),
    p_after => null::jsonb
  );
end
$$;

comment on function fleet.drop_reader(text) is
  'Drops the login of a reader, and ends its sessions. Example: select fleet.drop_reader(''acme_dashboard'');';
--! EndIncluded access/drop_reader.sql
--! Included access/reader_logins.view.sql
create or replace view fleet.reader_logins as
select r.reader, r.cohorts,
  array(select c from unnest(r.cohorts) c where not exists (select from fleet.devices d where d.cohort = c)) as empty_cohorts,
  coalesce(l.rolcanlogin, false) as can_login, l.rolconnlimit as connection_limit,
  (select count(*) from pg_stat_activity a where a.usesysid = l.oid) as sessions,
  r.created_at, r.created_by
from fleet.readers r
left join pg_roles l on l.rolname = r.reader and pg_has_role(l.oid, 'fleet_cohort_reader', 'member');

comment on view fleet.reader_logins is
  'The logins that see only their cohorts, and of each the cohorts, those of them that have no device, whether it can log in, how '
  'many connections it may have and has now. Example: select reader, cohorts from fleet.reader_logins;';
--! EndIncluded access/reader_logins.view.sql
--! Included access/check_readers.sql
create or replace function fleet.check_readers()
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  -- The views of devices, which were made with the rights of the login.
  c_views constant text[] := array[
    'device_state', 'device_status', 'devices_offline', 'unity_down', 'fleet_summary', 'recent_changes', 'missed_beats',
    'device_availability', 'unreadable_fields'
  ];
  v_open record;
  v_mark text;
begin
  -- Missing if the administrator has not run the setup of this version.
  if to_regprocedure('fleet_guard.reader_mark()') is not null then
    execute 'select fleet_guard.reader_mark()' into v_mark;
  end if;
  check_name := 'readers';

  -- What the logins may read is a table with a policy for them, or a view that reads such tables with their rights.
  select string_agg(o.name, ', ' order by o.name) as names, string_agg(o.remedy, e'\n' order by o.name) as remedies
  into v_open
  from (
    select c.oid::regclass::text as name,
      case
        when p.polname is not null and c.relkind in ('r', 'p') then
          format('alter table %s enable row level security;', c.oid::regclass)
        when c.relname = any (c_views) then format('alter view %s set (security_invoker = true);', c.oid::regclass)
        else format('revoke select on %s from fleet_cohort_reader;', c.oid::regclass)
      end as remedy
    from pg_class c
    left join pg_policy p on p.polrelid = c.oid and p.polname = 'seen_cohorts' and not p.polpermissive
      and p.polroles = array['fleet_cohort_reader'::regrole::oid]
    where c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'f')
      and has_any_column_privilege('fleet_cohort_reader', c.oid, 'select')
      -- Two that show nothing of other cohorts by themselves: when a device is offline, and what fleet.silence_at() returns.
      and c.relname not in ('settings', 'fleet_silence')
      and not (c.relkind in ('r', 'p') and c.relrowsecurity and p.polname is not null)
      and not (c.relkind = 'v' and coalesce('security_invoker=true' = any (c.reloptions), false))
  ) o;
  if v_open.names is not null then
    status := 'fail';
    detail := 'the logins of fleet.create_reader() see every cohort in ' || v_open.names;
    remedy := e'-- as fleet_owner\n' || v_open.remedies;
    return next;
    return;
  end if;

  select string_agg(format('%s is a member of %s', l.rolname, l.more), ', ' order by l.rolname, l.more) as names,
    string_agg(format('revoke %I from %I;', l.more, l.rolname), e'\n' order by l.rolname, l.more) as remedies
  into v_open
  from (
    select r.rolname, m.roleid::regrole::text as more
    from pg_roles r
    join pg_auth_members m on m.member = r.oid
    where r.rolcanlogin and not r.rolsuper and pg_has_role(r.oid, 'fleet_cohort_reader', 'usage')
      and m.roleid <> 'fleet_cohort_reader'::regrole
  ) l;
  if v_open.names is not null then
    status := 'warn';
    detail := format('logins that should see only their cohorts have more rights: %s', v_open.names);
    remedy := e'-- as superuser\n' || v_open.remedies;
    return next;
    return;
  end if;

  select string_agg(r.reader, ', ' order by r.reader) as names,
    string_agg(format('select fleet.renew_reader_password(%L);', r.reader), e'\n' order by r.reader) as remedies
  into v_open
  from fleet.readers r
  where not exists (
    select from pg_roles l
    where l.rolname = r.reader and l.rolcanlogin and pg_has_role(l.oid, 'fleet_cohort_reader', 'usage')
  );
  if v_open.names is not null then
    status := 'warn';
    detail := format('readers without a login, as after the restore of a dump: %s', v_open.names);
    remedy := e'-- makes the login again, and shows its new password once\n' || v_open.remedies;
    return next;
    return;
  end if;

  select string_agg(r.rolname, ', ' order by r.rolname) as names,
    string_agg(format('select fleet.drop_reader(%L);', r.rolname), e'\n' order by r.rolname) as remedies
  into v_open
  from pg_roles r
  where shobj_description(r.oid, 'pg_authid') = v_mark
    and not exists (select from fleet.readers c where c.reader = r.rolname);
  if v_open.names is not null then
    status := 'warn';
    detail := format('logins without a row in fleet.readers, which see nothing: %s', v_open.names);
    remedy := v_open.remedies;
    return next;
    return;
  end if;

  status := 'ok';
  detail := format('%s logins see only their cohorts', (select count(*) from fleet.readers));
  return next;
end
$$;

comment on function fleet.check_readers() is
  'The part of fleet.check() about the logins of fleet.create_reader(): whether they are there, and see no more than they should.';
--! EndIncluded access/check_readers.sql
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
  -- LOCK TABLE needs the right to write, which the owner does not have; this statement takes the same lock and changes nothing,
  -- because row-level security is always on there (access/readers.policies.sql).
  alter table only fleet.device_heartbeats enable row level security;
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
    -- pg_partman believes that every partition is as long as it now makes them, which is wrong after a change of the cadence.
    p_reference_timestamp => v_partition.range_start
      + (select c.partition_interval::interval from partman.part_config c where c.parent_table = 'fleet.device_heartbeats')
      + interval '1 microsecond'
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
  if fleet.is_distributed() then
    raise exception using
      errcode = 'FL002',
      message = 'this store is distributed, and only a plain store can import a table',
      hint = 'Import it into a plain store, and distribute that: docs/scale-out.md.';
  end if;
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
        when v_fault = 'its row-level security may hide rows' then format('As its owner: alter table %s disable row level security;', a.source)
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
      -- PostgreSQL 18 takes the bytes of a bytea for a binary number. They are more likely the digits of one.
      if v_type = 'bytea' then
        raise cannot_coerce;
      end if;
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
--! Included ingest/record_slowed.sql
create or replace function fleet.record_slowed(p_counts json) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.device_slowdowns as s (device_id, hour, times, first_at, last_at)
  select d.device_id, date_trunc('hour', now(), 'UTC'), sum(r.times), now(), now()
  from json_to_recordset(p_counts) as r (token_hash text, times bigint)
  join fleet.devices d on d.token_hash = decode(r.token_hash, 'hex')  -- a token may be wrong, or renewed since
  group by d.device_id
  order by d.device_id
  on conflict on constraint device_slowdowns_pkey do update
    set times = s.times + excluded.times,
      last_at = excluded.last_at;
end
$$;

comment on function fleet.record_slowed(json) is
  'Records how many requests of devices a server process refused because they sent too many, by the SHA-256 of their token; sent '
  'every 10 seconds. Unknown tokens are left out. Example: select fleet.record_slowed('
  '''[{"token_hash":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","times":120}]'');';
--! EndIncluded ingest/record_slowed.sql
--! Included ingest/slowed_devices.view.sql
create or replace view fleet.slowed_devices as
select d.device_id, d.alias, d.cohort, s.times, s.first_at, s.last_at
from fleet.device_slowdowns s
join fleet.devices d using (device_id);

comment on view fleet.slowed_devices is
  'Devices that send more requests than the servers accept (DEVICE_REQUESTS_PER_MINUTE), a row for each device and hour: how many '
  'requests were refused with 429, and when the first and the last. Kept for settings.quarantine_keep. Example: select device_id, '
  'alias, sum(times) from fleet.slowed_devices where last_at > now() - interval ''1 day'' group by 1, 2 order by 3 desc;';
--! EndIncluded ingest/slowed_devices.view.sql
--! Included devices/take_commands.sql
create or replace function fleet.take_commands(p_device_id bigint)
returns table (command_id bigint, command text, payload jsonb, created_at timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
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
end
$$;

comment on function fleet.take_commands(bigint) is
  'Hands a device its commands, oldest first, at most 100, and logs that. A command is handed over again until it is '
  'acknowledged, because the answer may have been lost. '
  'Example: select * from fleet.take_commands(42);';
--! EndIncluded devices/take_commands.sql
--! Included partitions/bind_range.sql
create or replace function fleet.bind_range(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
set client_min_messages = 'warning'
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
    -- Two statements, because Citus takes one change of a constraint at a time.
    execute format('alter table %s drop constraint if exists %I', v_table::regclass, v_constraint);
    execute format(
      'alter table %s add constraint %I check (ts >= %L and ts < %L)', v_table::regclass, v_constraint, v_partition.range_start,
      v_partition.range_end
    );
  end if;
end
$$;

comment on function fleet.bind_range(text) is
  'Gives a partition a CHECK constraint equal to its bounds, so that attaching it again needs no scan.';
--! EndIncluded partitions/bind_range.sql
--! Included partitions/configure_partman.sql
create or replace function fleet.configure_partman() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_cadence text;
  v_premake integer;
  v_width text;
begin
  -- pg_partman counts partitions; the setting counts days.
  select s.cadence, case s.cadence when 'monthly' then ceil(s.premake_days / 28.0)::integer else s.premake_days end
  into v_cadence, v_premake
  from fleet.settings s;
  v_width := case v_cadence when 'monthly' then '1 month' else '1 day' end;
  update partman.part_config c
  set partition_interval = v_width, premake = v_premake
  where c.parent_table = 'fleet.device_heartbeats'
    and (c.partition_interval::interval <> v_width::interval or c.premake <> v_premake);
end
$$;

comment on function fleet.configure_partman() is 'Passes settings.cadence and settings.premake_days on to pg_partman.';
--! EndIncluded partitions/configure_partman.sql
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
    select q.partition_name, fleet.bytes_of(q) as bytes
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
--! Included scaling/distribute.sql
-- A procedure that commits can have neither SET nor SECURITY DEFINER.
create or replace procedure fleet.distribute(p_shards integer default 32)
language plpgsql
as $$
declare
  v_step text;
begin
  for v_step in select p.step from fleet.distribution_plan() p order by p.nth loop
    perform fleet.distribute_step(v_step, p_shards);
    commit;
  end loop;
end
$$;

comment on procedure fleet.distribute(integer) is
  'Distributes the tables of this store over the workers that Citus knows, by device_id in so many shards, and creates its functions on '
  'them. May be stopped and called again. Heartbeats are refused from the first step on, until npm run distribute has installed what '
  'differs in a distributed store. See docs/scale-out.md. Example: call fleet.distribute(32);';
--! EndIncluded scaling/distribute.sql
--! Included scaling/distribute_step.sql
-- One transaction for each step, so that it can be stopped between any two, and goes on from there.
create or replace function fleet.distribute_step(p_step text, p_shards integer default 32) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set client_min_messages = 'warning'
as $$
declare
  v_step record;
  v_problem record;
  v_table regclass;
  v_triggers text[];
  v_trigger text;
  v_rows_before bigint;
  v_hash_before numeric;
  v_rows bigint;
  v_hash numeric;
  v_sum constant text := 'select count(*) as rows, sum(hash_record_extended(t, 0)::numeric) as hash from %s t';
  v_definition text;
  v_count integer := 0;
begin
  if p_shards is null or p_shards < 1 or p_shards > 1024 then
    raise exception using
      errcode = 'FL422',
      message = format('%s shards are not between 1 and 1024', coalesce(p_shards::text, 'null')),
      hint = 'Give two to four times as many as the cluster will ever have cores: call fleet.distribute(32);';
  end if;
  select * into v_step from fleet.distribution_plan() p where p.step = p_step;
  if v_step.step is null then
    raise exception using
      errcode = 'FL404',
      message = format('there is no step %s', coalesce(p_step, 'null')),
      hint = 'The steps are in: select * from fleet.distribution_plan();';
  end if;
  if v_step.is_done then
    return 'done before';
  end if;
  if exists (select from fleet.distribution_plan() p where p.nth < v_step.nth and not p.is_done) then
    raise exception using
      errcode = 'FL002',
      message = format('step %s comes after others that are not done', p_step),
      hint = 'All of them, in order: call fleet.distribute();';
  end if;
  perform set_config('citus.enable_unsafe_triggers', 'on', true);
  if v_step.kind = 'close' then
    for v_problem in select * from fleet.distribution_problems() loop
      raise exception using
        errcode = 'FL002',
        message = 'this store cannot be distributed now: ' || v_problem.problem,
        hint = v_problem.remedy;
    end loop;
    -- From here until npm run distribute ends, heartbeats are answered with 503, and devices send them again.
    revoke execute on function fleet.ingest_batch(json, timestamptz, bytea[], integer[]) from fleet_server;
    revoke execute on function fleet.ingest(json, timestamptz) from fleet_server, fleet_dba;
    if exists (select from pg_extension where extname = 'pg_cron') then
      execute $jobs$
        select cron.unschedule(j.jobid) from cron.job j where j.jobname like 'fleet-%' and j.username = current_user
      $jobs$;
    end if;
    -- Citus refuses policies with subqueries. There are no logins that need them.
    for v_table in select p.polrelid from pg_policy p where p.polname = 'seen_cohorts' loop
      execute format('drop policy seen_cohorts on %s', v_table);
    end loop;
    create table fleet.online_ranges (
      range_start timestamptz not null,
      range_end timestamptz not null,
      is_settled boolean not null,
      constraint online_ranges_pkey primary key (range_start)
    );
    comment on table fleet.online_ranges is
      'The days that are online, for the ingest of each node of a distributed store; kept by a trigger on fleet.hb_partitions.';
    execute format(
      'insert into fleet.%I (range_start, range_end, is_settled) '
      'select p.range_start, p.range_end, p.settled_at is not null '
      'from fleet.hb_partitions p '
      'where p.state in (''active'', ''restored'') and p.relid is not null',
      'online_ranges'
    );
    execute format('select create_reference_table(%L)', 'fleet.online_ranges');
    perform fleet.audit('store.distributing', 'store:fleet', p_after => jsonb_build_object('shards', p_shards));
    return 'ingest is closed';
  end if;

  if v_step.kind in ('reference', 'distributed') then
    v_table := format('fleet.%I', p_step)::regclass;
    -- Nobody writes meanwhile. LOCK TABLE needs the right to write, which the owner does not have on heartbeats; row-level security is
    -- always on there.
    if p_step = 'device_heartbeats' then
      alter table only fleet.device_heartbeats enable row level security;
    else
      execute format('lock table %s in share row exclusive mode', v_table);
    end if;
    execute format(v_sum, v_table) into v_rows_before, v_hash_before;
    if v_step.kind = 'reference' then
      -- Created again, the functions of the triggers go to every node.
      for v_definition in
        select pg_get_functiondef(f.tgfoid)
        from (select distinct g.tgfoid from pg_trigger g where g.tgrelid = v_table and not g.tgisinternal) f
      loop
        execute v_definition;
      end loop;
      -- While the rows are copied, triggers take them for new ones.
      v_triggers := array(
        select pg_get_triggerdef(g.oid) from pg_trigger g where g.tgrelid = v_table and not g.tgisinternal order by g.tgname
      );
      for v_trigger in
        select g.tgname from pg_trigger g where g.tgrelid = v_table and not g.tgisinternal
      loop
        execute format('drop trigger %I on %s', v_trigger, v_table);
      end loop;
      execute format('select create_reference_table(%L)', v_table);
      foreach v_trigger in array v_triggers loop
        execute v_trigger;
      end loop;
    else
      -- Ingest does in its own statements what these did.
      drop trigger if exists device_heartbeats_record_last_status on fleet.device_heartbeats;
      drop trigger if exists device_last_status_add_last_status on fleet.device_last_status;
      delete from fleet.recorded_triggers r
      where r.trigger_name in ('device_heartbeats_record_last_status', 'device_last_status_add_last_status');
      if p_step = 'device_last_status' then
        execute format(
          'select create_distributed_table(%L, ''device_id'', colocate_with => ''none'', shard_count => %s)', v_table, p_shards
        );
      else
        execute format(
          'select create_distributed_table(%L, ''device_id'', colocate_with => ''fleet.device_last_status'')', v_table
        );
      end if;
    end if;
    execute format(v_sum, v_table) into v_rows, v_hash;
    if (v_rows_before, v_hash_before) is distinct from (v_rows, v_hash) then
      raise exception using
        errcode = 'FL010',
        message = format('%s has other rows after it was distributed; it stays as it was', v_table),
        detail = format('rows %s, then %s; hash %s, then %s', v_rows_before, v_rows, v_hash_before, v_hash),
        hint = 'Report this. Nothing of this step was kept.';
    end if;
    return format('%s rows, hash %s, the same before and after', v_rows, coalesce(v_hash, 0));
  end if;

  if v_step.kind = 'functions' then
    -- Created again, they go to every node. What takes a row of a table of the coordinator stays there, which Citus says as a warning.
    perform set_config('client_min_messages', 'error', true);
    for v_definition in
      select pg_get_functiondef(p.oid)
      from pg_proc p
      where p.pronamespace = 'fleet'::regnamespace and p.prokind in ('f', 'p')
      order by p.oid
    loop
      execute v_definition;
      v_count := v_count + 1;
    end loop;
    return format('%s functions', v_count);
  end if;

  perform set_config('citus.multi_shard_modify_mode', 'sequential', true);
  -- Citus leaves the rows of before in the tables of the coordinator, where nothing reads them.
  for v_table in
    execute format($query$
      select c.oid::regclass
      from pg_catalog.%I d
      join pg_catalog.pg_class c on c.oid = d.logicalrelid
      where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and (d.partmethod = 'h' or d.repmodel = 't')
      order by c.relname
    $query$, 'pg_dist_partition')
  loop
    if v_table = 'fleet.device_heartbeats'::regclass then
      execute format('grant truncate on %s to fleet_owner', v_table);
    end if;
    execute format('select truncate_local_data_after_distributing_table(%L)', v_table);
    if v_table = 'fleet.device_heartbeats'::regclass then
      execute format('revoke truncate on %s from fleet_owner', v_table);
    end if;
    v_count := v_count + 1;
  end loop;
  return format('%s tables', v_count);
end
$$;

comment on function fleet.distribute_step(text, integer) is
  'Does one step of fleet.distribution_plan(), compares the rows of a table before and after, and says what it did. Called by '
  'fleet.distribute() and npm run distribute. Example: select fleet.distribute_step(''close'');';
--! EndIncluded scaling/distribute_step.sql
--! Included scaling/distribution_plan.sql
create or replace function fleet.distribution_plan()
returns table (nth integer, step text, kind text, bytes bigint, is_done boolean)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_is_possible boolean := exists (select from pg_extension where extname = 'citus');
  v_step record;
begin
  nth := 0;
  for v_step in
    select *
    from (values
      ('close', 'close', null),
      -- Citus sends the views of a table with it, and they call functions. Some functions take rows of a table, so they follow it.
      ('functions', 'functions', null),
      ('settings', 'reference', 'fleet.settings'),
      ('cohorts', 'reference', 'fleet.cohorts'),
      ('gateways', 'reference', 'fleet.gateways'),
      ('devices', 'reference', 'fleet.devices'),
      ('device_last_status', 'distributed', 'fleet.device_last_status'),
      ('device_heartbeats', 'distributed', 'fleet.device_heartbeats'),
      ('late_arrivals', 'distributed', 'fleet.late_arrivals'),
      ('heartbeat_quarantine', 'distributed', 'fleet.heartbeat_quarantine'),
      ('device_availability_daily', 'distributed', 'fleet.device_availability_daily'),
      ('device_commands', 'distributed', 'fleet.device_commands'),
      ('command_dispatch_log', 'distributed', 'fleet.command_dispatch_log'),
      ('device_unreadable_fields', 'distributed', 'fleet.device_unreadable_fields'),
      ('device_slowdowns', 'distributed', 'fleet.device_slowdowns'),
      ('other_functions', 'functions', null),
      ('clean_up', 'clean_up', null)
    ) as v (step, kind, relation)
  loop
    nth := nth + 1;
    step := v_step.step;
    kind := v_step.kind;
    is_done := false;
    bytes := null;
    if v_step.relation is not null then
      bytes := (
        select sum(pg_total_relation_size(t.relid)) from pg_partition_tree(v_step.relation::regclass) t where t.isleaf
      );
    end if;
    if v_is_possible then
      -- The names of Citus are known only to a database that has it.
      execute case v_step.kind
        when 'close' then 'select fleet.is_distributed()'
        when 'functions' then
          $query$
            select exists (
              select from pg_catalog.pg_dist_object o
              where o.classid = 'pg_catalog.pg_proc'::regclass
                and o.objid = $1::regprocedure
            )
          $query$
        when 'clean_up' then
          $query$
            select exists (select from pg_catalog.pg_dist_partition d where d.logicalrelid = to_regclass('fleet.device_slowdowns'))
              and not exists (
                select
                from pg_catalog.pg_dist_partition d
                join pg_catalog.pg_class c on c.oid = d.logicalrelid
                where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and (d.partmethod = 'h' or d.repmodel = 't')
                  and pg_relation_size(c.oid) > 0
              )
          $query$
        else 'select exists (select from pg_catalog.pg_dist_partition d where d.logicalrelid = to_regclass($1))'
      end into is_done using case v_step.step
        when 'functions' then 'fleet.beats_missed(interval, interval)'
        when 'other_functions' then 'fleet.upsert_last_status(fleet.device_heartbeats[], boolean)'
        else v_step.relation
      end;
    end if;
    return next;
  end loop;
end
$$;

comment on function fleet.distribution_plan() is
  'The steps in which fleet.distribute() distributes this store, with the size of each table, and which are done. '
  'Example: select * from fleet.distribution_plan();';
--! EndIncluded scaling/distribution_plan.sql
--! Included scaling/distribution_problems.sql
create or replace function fleet.distribution_problems() returns table (problem text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_extension where extname = 'citus') then
    problem := 'the extension citus is not in this database';
    remedy := 'As superuser: alter system set shared_preload_libraries = ''citus, pg_cron''; restart Postgres; '
      'create extension citus;';
    return next;
  end if;
  if exists (select from fleet.imports i where i.state <> 'confirmed') then
    problem := format(
      'a table is being imported: %s',
      (select string_agg(i.source, ', ' order by i.source) from fleet.imports i where i.state <> 'confirmed')
    );
    remedy := 'Finish it first, because a distributed store cannot import: select * from fleet.import_progress;';
    return next;
  end if;
  if exists (select from fleet.restore_items i where i.state in ('pending', 'running')) then
    problem := 'an archived day is being restored';
    remedy := 'Wait until it is done: select * from fleet.restore_items where state in (''pending'', ''running'');';
    return next;
  end if;
  if exists (select from fleet.erasures e where e.state = 'running') then
    problem := 'a device is being erased';
    remedy := 'Wait until it is done: select * from fleet.erasure_progress;';
    return next;
  end if;
  if exists (select from fleet.hb_partitions p where p.state in ('detached', 'archiving', 'archived', 'archive_failed')) then
    problem := format(
      'retired days wait for the archiver or for their drop: %s',
      (
        select string_agg(p.partition_name, ', ' order by p.range_start)
        from fleet.hb_partitions p
        where p.state in ('detached', 'archiving', 'archived', 'archive_failed')
      )
    );
    remedy := 'Their tables would stay on the coordinator. Wait until they are dropped: '
      'select * from fleet.partition_health where state <> ''active'';';
    return next;
  end if;
  if exists (select from fleet.readers) then
    problem := 'there are logins of fleet.create_reader(), which see only their cohorts';
    remedy := 'Citus has no row-level security of that kind. Drop them: select fleet.drop_reader(reader) from fleet.reader_logins;';
    return next;
  end if;
end
$$;

comment on function fleet.distribution_problems() is
  'Why this store cannot be distributed now, and what to do about it; no row if it can. '
  'Example: select * from fleet.distribution_problems();';
--! EndIncluded scaling/distribution_problems.sql
--! Included status/forget_marks.sql
create or replace function fleet.forget_marks() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  update fleet.silence_marks
  set marked_at = '-infinity', changes = changes + 1;
  return null;
end
$$;

comment on function fleet.forget_marks() is
  'Trigger on fleet.devices: with different heartbeat intervals, devices are offline after different times. So the marks of '
  'fleet.mark_silent() are not used until its next run.';
--! EndIncluded status/forget_marks.sql
--! Included devices/alias_of.sql
-- Citus cannot insert into a table of the coordinator from a join of one with fleet.devices, but it can call this. A plain store pays
-- 7 µs a message for it (measured; a join 0.5), of the 500 that a change of status costs it.
create or replace function fleet.alias_of(p_device_id bigint) returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select d.alias from fleet.devices d where d.device_id = p_device_id);
end
$$;

comment on function fleet.alias_of(bigint) is
  'The alias of a device; null if there is no such device. Example: select fleet.alias_of(42);';
--! EndIncluded devices/alias_of.sql
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
  if fleet.is_distributed() then
    -- Before the rows come: Citus would leave a copy of them on the coordinator.
    execute format(
      'select create_distributed_table(%L, ''device_id'', colocate_with => ''fleet.device_heartbeats'')', format('fleet.%I', v_table)
    );
  end if;
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_restore(text, text) is
  'Creates the empty table for a restore, with the columns of the archive, and returns its name.';
--! EndIncluded archive/begin_restore.sql
create table if not exists fleet.ticked_jobs (
  jobname text primary key,
  started_at timestamptz not null,
  status text not null check (status in ('running', 'succeeded', 'failed')),
  message text,
  last_success timestamptz
);
comment on table fleet.ticked_jobs is 'The last run of each job by npm run tick. Empty where pg_cron runs the jobs.';
comment on column fleet.ticked_jobs.jobname is 'The job, as in fleet.job_definitions().';
comment on column fleet.ticked_jobs.started_at is 'When it last began.';
comment on column fleet.ticked_jobs.status is 'Whether it runs, or how it ended. One whose session was lost stays running until it begins again.';
comment on column fleet.ticked_jobs.message is 'The error with which it failed.';
comment on column fleet.ticked_jobs.last_success is 'When the last run that succeeded began.';

--! Included jobs/job_lock.sql
-- The two jobs of maintenance take one lock. If they had two here, one tick would begin the second while another does the first,
-- and it would fail.
create or replace function fleet.job_lock(p_jobname text) returns bigint
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended(
    'fleet.job.' || case when p_jobname in ('fleet-maintain', 'fleet-nightly') then 'maintenance' else p_jobname end, 0
  );
$$;

comment on function fleet.job_lock(text) is
  'The advisory lock of the session that runs a job for npm run tick: of fleet.begin_job() and fleet.end_job().';
--! EndIncluded jobs/job_lock.sql
--! Included jobs/begin_job.sql
create or replace function fleet.begin_job(p_jobname text, p_due timestamptz) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_command text := (select d.command from fleet.job_definitions() d where d.jobname = p_jobname);
  v_key bigint := fleet.job_lock(p_jobname);
begin
  if exists (select from pg_extension where extname = 'pg_cron') then
    raise exception using
      errcode = 'FL409',
      message = 'pg_cron runs the jobs of this database',
      hint = 'npm run tick is for a Postgres without pg_cron. If pg_cron does not work here: select * from fleet.check();';
  end if;
  if v_command is null then
    raise exception using
      errcode = 'FL404',
      message = format('there is no job %s', coalesce(p_jobname, 'null')),
      hint = 'The jobs: select * from fleet.job_definitions();';
  end if;
  -- The lock of a session, because the job has transactions of its own. It also ends with a session that is lost.
  if not pg_try_advisory_lock(v_key) then
    return null;
  end if;
  insert into fleet.ticked_jobs as j (jobname, started_at, status)
  values (p_jobname, clock_timestamp(), 'running')
  on conflict (jobname) do update
    set started_at = excluded.started_at, status = excluded.status, message = null
    -- A later start was written while the clock ran ahead.
    where j.started_at < p_due or j.started_at > clock_timestamp();
  if not found then
    perform pg_advisory_unlock(v_key);
    return null;
  end if;
  return v_command;
end
$$;

comment on function fleet.begin_job(text, timestamptz) is
  'Claims a job of fleet.job_definitions() for this session, if it has not begun since it was due and runs in no other session. '
  'Returns the statement to run, or null. Then call fleet.end_job(). For npm run tick, where there is no pg_cron.';
--! EndIncluded jobs/begin_job.sql
--! Included jobs/end_job.sql
create or replace function fleet.end_job(p_jobname text, p_error text default null) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update fleet.ticked_jobs j
  set status = case when p_error is null then 'succeeded' else 'failed' end,
    message = left(p_error, 1000),
    last_success = case when p_error is null then j.started_at else j.last_success end
  where j.jobname = p_jobname;
  perform pg_advisory_unlock(fleet.job_lock(p_jobname));
end
$$;

comment on function fleet.end_job(text, text) is
  'Records how a job ended that this session began with fleet.begin_job(), and lets others begin it.';
--! EndIncluded jobs/end_job.sql
--! Included jobs/job_health.view.sql
-- The age of a job counts from its last success or from the start of Postgres, whichever is later: nothing runs while it is down.
create or replace view fleet.job_health as
select h.jobname, h.schedule,
  case
    -- Days are settled and erased at any time; the next fleet.nightly() tells pg_cron which of them to freeze.
    when h.is_active is null and h.jobname = 'fleet-freeze' then 'waiting'
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
  'The jobs of the store, which pg_cron or npm run tick runs: ok, waiting (has not run yet), late, failed, disabled or missing. Example: select * from '
  'fleet.job_health where status <> ''ok'';';
--! EndIncluded jobs/job_health.view.sql
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
  -- A later one was written while the clock ran ahead.
  v_ticked timestamptz := (select max(j.started_at) from fleet.ticked_jobs j where j.started_at <= p_now);
  v_last_run timestamptz;
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
  if not v_has_cron and v_ticked is not null then
    detail := 'npm run tick runs the jobs';
    if p_now - greatest(v_ticked, fleet.postgres_started_at()) > interval '5 minutes' then
      status := 'fail'; detail := format('npm run tick last began a job %s ago', date_trunc('second', p_now - v_ticked));
      remedy := e'# in a shell, each minute\nDATABASE_URL=postgres://fleet_owner@… npm run tick';
    end if;
  elsif not v_has_cron and exists (
    select from fleet.events e
    where e.event = 'maintain.start' and e.at <= p_now
      and greatest(e.at, fleet.postgres_started_at()) >= p_now - interval '125 minutes'
  ) then
    detail := 'pg_cron is not in this database, but the hourly maintenance runs';
  elsif not v_has_cron then
    status := 'warn';
    detail := 'pg_cron is not in this database, no maintenance ran in the last two hours, and npm run tick was never run';
    remedy := format(
      e'-- as superuser, in database %s\n%s',
      coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'postgres, once pg_cron is there'),
      (select string_agg(j.statement, e'\n') from fleet.jobs_elsewhere() j)
    );
  elsif pg_is_in_recovery() then
    detail := 'this is a standby: the jobs run on the primary, and remedies must be run there too';
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs until Postgres is restarted'; remedy := c_restart;
  else
    execute 'select d.start_time from cron.job_run_details d where d.start_time is not null order by d.runid desc limit 1'
    into v_last_run;
    -- It remembers the minute of its last run, and waits for the next one.
    if v_last_run > clock_timestamp() + interval '1 minute' then
      status := 'fail';
      detail := format(
        'the clock of Postgres ran ahead and was set back: pg_cron runs no job before %s, unless Postgres is restarted',
        date_trunc('minute', v_last_run)
      );
      remedy := c_restart;
    end if;
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
      when bool_or(j.fault <> 'missing') then e'-- as fleet_owner; the next run clears this\n'
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
    where v_has_cron or v_ticked is not null
  ) j
  join fleet.job_definitions() d using (jobname)
  where j.fault not in ('ok', 'waiting');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(
    v_names, case when v_has_cron or v_ticked is not null then 'all jobs run' else 'the history of the jobs is in the database of pg_cron' end
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
  'The part of fleet.check() about the scheduler: pg_cron or npm run tick, the jobs and roles, failed steps, missed nights and stuck locks.';
--! EndIncluded checks/check_scheduler.sql

--! Included scaling/shard_map.sql
create or replace function fleet.shard_map()
returns table (low integer, high integer, host text, port integer, is_local boolean)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not fleet.is_distributed() then
    return;
  end if;
  -- The names of Citus are known only to a database that has it.
  return query execute $query$
    select s.shardminvalue::integer, s.shardmaxvalue::integer, n.nodename, n.nodeport,
      n.groupid = (select g.groupid from pg_catalog.pg_dist_local_group g)
    from pg_catalog.pg_dist_shard s
    join pg_catalog.pg_dist_placement p on p.shardid = s.shardid
    join pg_catalog.pg_dist_node n on n.groupid = p.groupid
    where s.logicalrelid = 'fleet.device_last_status'::regclass
      and s.shardminvalue is not null and n.noderole = 'primary' and n.isactive
    order by s.shardminvalue::integer
  $query$;
end
$$;

comment on function fleet.shard_map() is
  'Which node of a distributed store has which devices: those for which hashint8(device_id) is from low to high. is_local says '
  'whether it is the node that answers. By it the server sends heartbeats to the node that has their device. No row in a plain '
  'store. Every node answers the same. Example: select * from fleet.shard_map();';
--! EndIncluded scaling/shard_map.sql

create table if not exists fleet.recorded_forms (
  object text not null,
  form text not null,
  constraint recorded_forms_pkey primary key (object)
);

comment on table fleet.recorded_forms is
  'A hash of each function and view that npm run migrate has installed in a distributed store; written by fleet.record_forms(). '
  'Empty in a plain store.';
comment on column fleet.recorded_forms.object is 'The function with its arguments, or the view, with its schema.';
comment on column fleet.recorded_forms.form is 'What fleet.form_of() returned for it.';

--! Included scaling/form_of.sql
create or replace function fleet.form_of(p_object text) returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_object like '%)' then (select md5(p.prosrc) from pg_proc p where p.oid = to_regprocedure(p_object))
    else (select md5(pg_get_viewdef(c.oid)) from pg_class c where c.oid = to_regclass(p_object) and c.relkind = 'v')
  end;
$$;

comment on function fleet.form_of(text) is
  'A hash of the text of a function or view, by which fleet.check_nodes() compares nodes. '
  'Example: select fleet.form_of(''fleet.device_state'');';
--! EndIncluded scaling/form_of.sql
--! Included scaling/record_forms.sql
create or replace function fleet.record_forms(p_names text[]) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  delete from fleet.recorded_forms;
  insert into fleet.recorded_forms (object, form)
  select o.object, fleet.form_of(o.object)
  from (
    select p.oid::regprocedure::text as object
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace and p.proname = any (p_names)
    union all
    select c.oid::regclass::text
    from pg_class c
    where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'v' and c.relname = any (p_names)
  ) o;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function fleet.record_forms(text[]) is
  'Records the forms that npm run migrate has installed in a distributed store, so that fleet.check() notices others; returns how many. '
  'Example: select fleet.record_forms(array[''ingest_batch'', ''device_state'']);';
--! EndIncluded scaling/record_forms.sql
--! Included checks/nodes_away.sql
create or replace function fleet.nodes_away() returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select null::text;
$$;

comment on function fleet.nodes_away() is
  'The nodes of a distributed store that do not answer; null if all do, and always null in a plain store, which has no nodes.';
--! EndIncluded checks/nodes_away.sql
--! Included checks/check_nodes.sql
create or replace function fleet.check_nodes(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select null::text, null::text, null::text, null::text
  where fleet.not_in_future(p_now) <> p_now;
$$;

comment on function fleet.check_nodes(timestamptz) is
  'The part of fleet.check() about the nodes of a distributed store. A plain store has none, so this returns no row there.';
--! EndIncluded checks/check_nodes.sql
--! Included ingest/device_heartbeats.trigger.sql
do $$
begin
  -- Citus refuses triggers on distributed tables; there, ingest does in its own statements what this does.
  if fleet.is_distributed() then
    return;
  end if;

  create or replace trigger device_heartbeats_record_last_status
    after insert on fleet.device_heartbeats
    referencing new table as new_rows
    for each statement execute function fleet.record_last_status();

  comment on trigger device_heartbeats_record_last_status on fleet.device_heartbeats is
    'Keeps fleet.device_last_status and fleet.late_arrivals up to date. Sees only the rows that are really stored.';
end
$$;
--! EndIncluded ingest/device_heartbeats.trigger.sql
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
  if not exists (select 1 from fleet.device_commands where device_id = p_device_id and command_id = p_command_id) then
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
--! Included setup/grants.sql
-- Who may do what. Everything is revoked first, so that only the grants in this file apply.
revoke all on all tables in schema fleet
  from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier, fleet_notifier, fleet_cohort_reader;
revoke all on all routines in schema fleet
  from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier, fleet_notifier, fleet_cohort_reader;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet
  to fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier, fleet_notifier, fleet_cohort_reader;
revoke create on schema fleet_detached from fleet_archiver;
grant usage on schema fleet_detached to fleet_archiver, fleet_verifier, fleet_reader, fleet_dba;

-- Nobody changes heartbeats, not even the owner: rows are dropped with their partition, once its archive is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;
-- Tables of 0.1.0 may have come from an older PostgreSQL.
select fleet.grant_maintain();

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.ingest_batch(json, timestamptz, bytea[], integer[]),
  fleet.authenticate(bytea),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.record_slo(text, json),
  fleet.shard_map(),
  fleet.record_unreadable_fields(json),
  fleet.fleet_summary_of(text[]),
  -- The buttons of the ops page.
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.request_restore(date, date),
  fleet.pause_webhook(text),
  fleet.resume_webhook(text, boolean),
  fleet.close_session(bigint),
  fleet.list_devices_of(text[], text, interval, bigint, integer, text, text),
  fleet.transitions_of_cohorts(text[], text, integer, text),
  fleet.authenticate_key(bytea, text),
  fleet.act(text, text, bytea, text, text, text, boolean),
  fleet.open_session(bytea, text, text, bytea, text[], text[], timestamptz, text, text, text),
  fleet.see_session(bytea),
  fleet.end_session(bytea, timestamptz, boolean, text, text),
  fleet.record_slowed(json),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer, text, text),
  fleet.list_devices_legacy(text, interval, bigint, integer, text, text),
  fleet.marks_hold(interval),  -- called by the view devices_offline
  fleet.counts_hold(timestamptz),  -- called by the view fleet_summary
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.allowed_lag(interval, interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, interval, timestamptz),
  fleet.excused(integer, interval),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.describe_clock(bigint),
  fleet.heartbeat_bucket(timestamptz),
  -- Called by the view device_status_legacy.
  fleet.reported_values(jsonb),
  fleet.silence_at(timestamptz),  -- called by the view fleet_silence
  fleet.transitions_after(text, integer, text),
  fleet.transitions_of(bigint, bigint, integer, text[]),
  fleet.postgres_started_at(),
  fleet.job_history()  -- called by the view job_health
to fleet_server, fleet_reader, fleet_dba;
grant execute on function fleet.table_of(fleet.hb_partitions) to fleet_server, fleet_archiver, fleet_reader, fleet_dba;
-- Called by the views partition_health and storage_growth.
grant execute on function fleet.bytes_of(fleet.hb_partitions) to fleet_server, fleet_archiver, fleet_reader, fleet_dba;

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
grant execute on procedure fleet.run_erasures(interval) to fleet_dba;

grant execute on function
  fleet.create_api_key(text, text[], text[], timestamptz),
  fleet.revoke_api_key(text),
  fleet.rotate_api_key(text, interval),
  fleet.close_session(bigint),
  fleet.enroll_device(text, text),
  fleet.erase_device(bigint, text),
  fleet.retry_erasure(bigint),
  fleet.forget_archive(text, text),
  fleet.partitions_being_erased(),
  fleet.erase_step(),  -- called by the procedure run_erasures
  fleet.is_night_missed(timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.rollup_plan(timestamptz),
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
  fleet.audit_unlock(text),  -- called by force_unlock
  fleet.set_cohort_interval(text, interval),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.settle_plan(timestamptz),
  fleet.settle_partition(text, timestamptz),
  fleet.unsettle_partition(text),
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
  fleet.check_fields(timestamptz),
  fleet.check_silence(timestamptz),
  fleet.check_devices(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_erasures(timestamptz),
  fleet.check_columns(),
  fleet.check_nodes(timestamptz),
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
  fleet.count_rows(regclass),
  fleet.checksum_expression(regclass, jsonb, integer),
  fleet.archive_form(text),
  fleet.unarchivable_columns(regclass),
  fleet.map_columns(jsonb, timestamptz),
  fleet.note_columns(),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

-- For its archive.
grant select on fleet.audit_log to fleet_archiver;
grant select on fleet.audit_archives to fleet_dba;
grant execute on function
  fleet.claim_audit_month(text, interval),
  fleet.renew_audit_lease(date, text, interval),
  fleet.record_audit_archive(date, text, integer, text, text, bigint, bigint, text),
  fleet.fail_audit_archive(date, text, text)
to fleet_archiver;

grant execute on function
  fleet.take_index_lock(),
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.lock_retired(text, text),
  fleet.count_retired(text, text, bigint, text, jsonb),
  fleet.record_export(text, text),
  fleet.record_upload(text, text, text, text, bigint, integer),
  fleet.record_columns(text, text, jsonb, integer, integer),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz, text),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text, text),
  fleet.fail_restore(text, text, text),
  fleet.partitions_being_erased(),
  fleet.claim_erasure(text, interval),
  fleet.renew_erasure_lease(text, text, interval),
  fleet.begin_erasure(text, text),
  fleet.record_erasure(
    text, text, bigint[], text, text, bigint, integer, text, bigint, timestamptz, timestamptz, text[]
  ),
  fleet.record_absence(text, text, bigint[], text),
  fleet.finish_erasure(text, text),
  fleet.fail_erasure(text, text, text),
  fleet.register_archive(
    text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
    integer, text
  )
to fleet_archiver;

-- What the notifier is given of devices is the text of the messages that it has to send. Also the secrets of the webhooks.
grant execute on function
  fleet.claim_deliveries(text, integer, interval, integer),
  fleet.record_delivery(bigint, text, integer),
  fleet.fail_delivery(bigint, text, integer, text, boolean, interval),
  fleet.release_deliveries(text),
  fleet.notifier_heartbeat(text, text)
to fleet_notifier;
grant execute on function
  fleet.webhook_events(),
  fleet.create_webhook(text, text, text[], text, interval, interval, text),
  fleet.pause_webhook(text),
  fleet.resume_webhook(text, boolean),
  fleet.remove_webhook(text),
  fleet.rotate_webhook_secret(text, interval),
  fleet.test_webhook(text),
  fleet.replay_webhook(text, bigint),
  fleet.retry_deliveries(text, text),
  fleet.dismiss_deliveries(text),
  fleet.wake_notifier(text),
  fleet.check_webhooks(timestamptz)
to fleet_dba;
grant execute on function fleet.webhook_origin(text) to fleet_reader, fleet_dba, fleet_server;  -- called by webhook_health
grant select on fleet.webhook_health to fleet_reader, fleet_dba;
grant select on fleet.notifiers to fleet_dba;
-- Not the secrets. The URL may be one too, and the DBA may have to see where messages go.
grant select (
  webhook_id, webhook_name, url, format, events, cohort, grace, repeat_after, created_at, created_by, paused_at, failures,
  hold_until, last_success_at, last_error_at, last_error, last_status
) on fleet.webhooks to fleet_dba;
grant select on fleet.webhook_deliveries to fleet_dba;

grant select on
  fleet.device_status, fleet.device_status_legacy, fleet.devices_offline, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;
grant select on fleet.unity_down, fleet.recent_changes to fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.storage_history, fleet.job_health,
  fleet.fleet_silence, fleet.fleet_trend, fleet.missed_beats, fleet.silence_samples, fleet.import_progress,
  fleet.device_availability, fleet.slo, fleet.unreadable_fields, fleet.slowed_devices
to fleet_reader, fleet_dba;
grant execute on function fleet.device_availability(date, date, bigint, timestamptz) to fleet_reader, fleet_dba;
-- For the ops page.
grant select on
  fleet.recent_changes, fleet.webhook_health, fleet.partition_health, fleet.archives, fleet.job_health, fleet.fleet_silence, fleet.fleet_trend, fleet.slo,
  fleet.unreadable_fields
to fleet_server;
-- Called by the view import_progress.
grant execute on function fleet.lock_holders(text) to fleet_reader, fleet_dba;
grant select on fleet.archives to fleet_archiver, fleet_verifier;
grant execute on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz, text, text) to fleet_verifier;
grant execute on function
  fleet.partitions_being_erased(),
  fleet.erasures_to_confirm(),
  fleet.confirm_erasure(text, text, text, text, text)
to fleet_verifier;
-- Not to fleet_reader: the ids of erased devices are nobody else's business.
grant select on fleet.erasures, fleet.erasure_items, fleet.erasure_progress to fleet_dba;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts, fleet.device_transitions, fleet.incidents
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_items to fleet_archiver, fleet_dba;
grant select on fleet.restore_requests to fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.api_keys, fleet.open_sessions, fleet.audit_log, fleet.settings_audit to fleet_dba;
-- For the ops page. What is in the log is decided by the functions that write it.
grant select on fleet.open_sessions, fleet.audit_log to fleet_server;
grant execute on function fleet.find_session(bytea) to fleet_server, fleet_dba;  -- called by the view open_sessions
grant select on
  fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual,
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
  silence_min_devices, ingest_gap, archive_stores, proofs_needed,
  settle, settle_max_wait, settle_budget, webhook_keep
) on fleet.settings to fleet_dba;

-- The views of devices read their tables with the rights of the login, so that the policies in access/readers.policies.sql apply.
-- The server gets no more by this than the views show it.
grant select on fleet.device_state, fleet.fleet_counts, fleet.device_unreadable_fields to fleet_server, fleet_reader, fleet_dba;
grant select on fleet.device_last_status, fleet.device_transitions, fleet.cohorts to fleet_server;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_server;
grant select (offline_after) on fleet.settings to fleet_server;
grant select on fleet.device_availability_daily to fleet_reader;
-- A distributed store reads the tables of every view with the rights of the login.
grant select on fleet.device_slowdowns to fleet_reader, fleet_dba;
grant execute on function fleet.seen_cohorts() to fleet_server, fleet_reader, fleet_dba;  -- called by the view fleet_summary

-- Logins that see only their cohorts. What is listed here has a policy, reads such tables with the rights of the login, or leaves
-- out other cohorts itself. Add no function with the owner's rights that returns other devices.
grant select on
  fleet.device_state, fleet.device_status, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary, fleet.fleet_silence,
  fleet.recent_changes, fleet.missed_beats, fleet.device_availability, fleet.unreadable_fields,
  fleet.device_last_status, fleet.device_transitions, fleet.command_dispatch_log, fleet.cohorts,
  fleet.fleet_counts, fleet.device_availability_daily, fleet.device_unreadable_fields
to fleet_cohort_reader;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_cohort_reader;
-- Not who sent a command: that is a person of ours.
grant select (device_id, command_id, command, payload, created_at, acknowledged_at) on fleet.device_commands to fleet_cohort_reader;
grant select (offline_after) on fleet.settings to fleet_cohort_reader;
select fleet.grant_heartbeat_columns();
grant execute on function
  fleet.seen_cohorts(),
  fleet.derive_status(boolean, timestamptz, interval, interval, interval, timestamptz),
  fleet.excused(integer, interval),
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.beats_missed(interval, interval),
  fleet.heartbeat_bucket(timestamptz),
  fleet.marks_hold(interval),
  fleet.counts_hold(timestamptz),
  fleet.silence_at(timestamptz)
to fleet_cohort_reader;
grant execute on function
  fleet.create_reader(text, text[]),
  fleet.set_reader_cohorts(text, text[]),
  fleet.renew_reader_password(text),
  fleet.drop_reader(text),
  fleet.check_readers()
to fleet_dba;
grant select on fleet.readers, fleet.reader_logins to fleet_dba;

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

-- Imports that are under way get the functions of this version.
select fleet.create_forward_function(i)
from fleet.imports i
where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;

-- The verifier reads retired tables, also those that were retired before.
do $$
declare
  v_name text;
begin
  for v_name in
    select p.partition_name from fleet.hb_partitions p where to_regclass(format('fleet_detached.%I', p.partition_name)) is not null
  loop
    execute format('grant select on fleet_detached.%I to fleet_verifier', v_name);
  end loop;
end
$$;
