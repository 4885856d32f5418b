create or replace function fleet.audit_webhook(p_action text, p_name text, p_old text, p_new text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select fleet.audit('webhook.' || p_action, 'webhook:' || p_name, to_jsonb(p_old), to_jsonb(p_new));
$$;

comment on function fleet.audit_webhook(text, text, text, text) is
  'Records in fleet.audit_log what was done to a webhook. Example: '
  'perform fleet.audit_webhook(''paused'', ''on-call'', ''active'', ''paused'');';
