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
