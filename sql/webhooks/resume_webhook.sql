create or replace function fleet.resume_webhook(p_name text, p_drop_waiting boolean default false) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
  v_waiting bigint;
begin
  if v_webhook.paused_at is null then
    return 0;
  end if;
  if p_drop_waiting then
    update fleet.webhook_deliveries
    set state = 'dropped', last_error = 'dropped when the webhook was resumed'
    where webhook_id = v_webhook.webhook_id and state = 'pending' and due_at <= now();
  else
    -- The time in which they are tried begins now.
    update fleet.webhook_deliveries
    set due_at = now(), next_attempt_at = now()
    where webhook_id = v_webhook.webhook_id and state = 'pending' and due_at <= now() and lease_owner is null;
  end if;
  get diagnostics v_waiting = row_count;
  update fleet.webhooks
  set paused_at = null, failures = 0, hold_until = null
  where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('resumed', p_name, 'paused', 'active');
  return v_waiting;
end
$$;

comment on function fleet.resume_webhook(text, boolean) is
  'Sends to a paused webhook again, and returns how many messages have waited. They are sent now, or never with p_drop_waiting. '
  'Example: select fleet.resume_webhook(''on-call'');';
