-- Enter migration here
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
  add column if not exists noted_reason text;
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
comment on column fleet.incidents.devices is 'How many devices went offline in it.';
create unique index if not exists incidents_open_idx on fleet.incidents (kind, subject) where ended_at is null;
comment on index fleet.incidents_open_idx is 'At most one open incident of a cohort or a network.';

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
comment on column fleet.device_transitions.transition_id is 'The number of the transition. Of one device, later ones have higher numbers.';
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

create index if not exists device_transitions_incident_idx on fleet.device_transitions (incident_id) where incident_id is not null;
comment on index fleet.device_transitions_incident_idx is 'The devices of an incident.';

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

select fleet.add_field(
  'next_in_s', 'integer', 'In how many seconds the device announced its next heartbeat: 1 to 604800. It is not late before.'
);
select fleet.add_field(
  'stopping', 'text', 'Why the device is about to stop, as it said: shutdown, reboot, update or app (only its agent stops).'
);

drop function if exists fleet.list_devices(text, interval, bigint, integer, text, text);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer, text, text);
drop view if exists
  fleet.devices_offline, fleet.unity_down, fleet.missed_beats, fleet.fleet_summary, fleet.device_status, fleet.device_status_legacy,
  fleet.device_state;
-- Functions, procedures, views
--!include status/excused.sql
--!include status/derive_status.sql
--!include transitions/network_of.sql
--!include transitions/beats_before.sql
--!include transitions/silence_reason.sql
--!include transitions/feed_base.sql
--!include transitions/was_ingest_down.sql
--!include transitions/find_incidents.sql
--!include transitions/incident_of.sql
--!include transitions/status_changes.sql
--!include transitions/note_transitions.sql
--!include transitions/note_first_status.sql
--!include transitions/devices_to_note.sql
--!include transitions/end_incidents.sql
--!include transitions/note_device.sql
--!include transitions/prune_transitions.sql
--!include transitions/transitions_after.sql
--!include transitions/transitions_of.sql
--!include status/add_last_status.sql
--!include devices/devices.trigger.sql
--!include status/upsert_last_status.sql
--!include status/record_last_status.sql
--!include ingest/ingest_batch.sql
--!include status/device_state.view.sql
--!include status/device_status.view.sql
--!include status/device_status_legacy.view.sql
--!include status/devices_offline.view.sql
--!include status/unity_down.view.sql
--!include status/list_devices.sql
--!include status/list_devices_legacy.sql
--!include status/fleet_summary.view.sql
--!include status/count_fleet.sql
--!include silence/silence_at.sql
--!include availability/is_ingest_down.sql
--!include availability/missed_beats.view.sql
-- The views above no longer use it.
drop function if exists fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz);
--!include status/record_arrivals.sql
--!include status/mark_silent.sql
--!include jobs/prune.sql
--!include setup/grants.sql
