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
