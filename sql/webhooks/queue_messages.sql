-- Called in the transaction that decided what is told. So a message exists if and only if what it tells of does.
create or replace function fleet.queue_messages(
  p_transition_ids bigint[], p_opened_incidents bigint[], p_closed_incidents bigint[]
) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_queued bigint;
  v_first fleet.webhook_deliveries;
  v_incident fleet.incidents;
  v_transition fleet.device_transitions;
  v_row record;
begin
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

  -- Only what may have to be told: after an outage most devices are back from what nobody was told of.
  for v_row in
    select t.transition_id, d.alias, w.webhook_id, w.grace, w.events,
      w.cohort is null or w.cohort = t.cohort as is_meant,
      t.status in ('late', 'offline', 'clock_skewed', 'unity_down') and t.status = any (w.events) as is_trouble
    from (
      select a.*, count(*) over (partition by a.device_id) as of_device
      from fleet.device_transitions a
      where a.transition_id = any (p_transition_ids)
    ) t
    cross join fleet.webhooks w
    left join fleet.devices d on d.device_id = t.device_id
    where (w.cohort is null or w.cohort = t.cohort)
      and (t.status = any (w.events) or t.event = any (w.events) or t.of_device > 1)
      or exists (
        select from fleet.webhook_deliveries o where o.webhook_id = w.webhook_id and o.device_id = t.device_id and o.is_open
      )
    order by t.transition_id, w.webhook_id
  loop
    select * into strict v_transition from fleet.device_transitions where transition_id = v_row.transition_id;
    select * into v_first
    from fleet.webhook_deliveries
    where webhook_id = v_row.webhook_id and device_id = v_transition.device_id and is_open
    for update;
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
