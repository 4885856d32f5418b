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
  add column if not exists gap_next_in_s integer,
  add column if not exists noted_reason text;
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
create index if not exists webhook_deliveries_due_idx on fleet.webhook_deliveries (webhook_id, next_attempt_at)
  where state = 'pending';
comment on index fleet.webhook_deliveries_due_idx is 'What is due.';
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
--!include transitions/recent_changes.view.sql
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
--!include webhooks/webhook_events.sql
--!include webhooks/webhook_origin.sql
--!include webhooks/describe_webhook.sql
--!include webhooks/audit_webhook.sql
--!include webhooks/get_webhook.sql
--!include webhooks/make_webhook_secret.sql
--!include webhooks/give_up_after.sql
--!include webhooks/create_webhook.sql
--!include webhooks/pause_webhook.sql
--!include webhooks/resume_webhook.sql
--!include webhooks/remove_webhook.sql
--!include webhooks/rotate_webhook_secret.sql
--!include webhooks/test_webhook.sql
--!include webhooks/incident_event.sql
--!include webhooks/device_message.sql
--!include webhooks/incident_message.sql
--!include webhooks/end_trouble.sql
--!include webhooks/queue_transition.sql
--!include webhooks/queue_messages.sql
--!include webhooks/remind_webhooks.sql
--!include webhooks/replayed.sql
--!include webhooks/replay_webhook.sql
--!include webhooks/retry_deliveries.sql
--!include webhooks/dismiss_deliveries.sql
--!include webhooks/claim_deliveries.sql
--!include webhooks/record_delivery.sql
--!include webhooks/fail_delivery.sql
--!include webhooks/release_deliveries.sql
--!include webhooks/notifier_heartbeat.sql
--!include webhooks/wake_notifier.sql
--!include webhooks/webhook_health.view.sql
--!include checks/check_webhooks.sql
--!include checks/check.sql
--!include metrics/metric_definitions.sql
--!include metrics/metric_values.sql
--!include setup/grants.sql
