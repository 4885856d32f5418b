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
