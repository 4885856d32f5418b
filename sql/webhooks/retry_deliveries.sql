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
