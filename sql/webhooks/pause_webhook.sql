create or replace function fleet.pause_webhook(p_name text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook fleet.webhooks := fleet.get_webhook(p_name);
begin
  if v_webhook.paused_at is not null then
    return false;
  end if;
  update fleet.webhooks
  set paused_at = now()
  where webhook_id = v_webhook.webhook_id;
  perform fleet.audit_webhook('paused', p_name, 'active', 'paused');
  return true;
end
$$;

comment on function fleet.pause_webhook(text) is
  'Sends nothing to a webhook until fleet.resume_webhook(). Its messages wait. Returns false if it was already paused. '
  'Example: select fleet.pause_webhook(''on-call'');';
