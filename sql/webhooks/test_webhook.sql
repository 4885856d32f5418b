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
