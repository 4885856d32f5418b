create or replace function fleet.audit_webhook(p_name text, p_old text, p_new text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select fleet.audit('webhook.changed', 'webhook:' || p_name, to_jsonb(p_old), to_jsonb(p_new));
$$;

comment on function fleet.audit_webhook(text, text, text) is 'Records a change of a webhook in fleet.audit_log.';
