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
