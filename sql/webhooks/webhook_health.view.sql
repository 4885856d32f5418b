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
