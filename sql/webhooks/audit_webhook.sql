create or replace function fleet.audit_webhook(p_name text, p_old text, p_new text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.settings_audit (setting, old_value, new_value)
  values ('webhook:' || p_name, p_old, p_new);
$$;

comment on function fleet.audit_webhook(text, text, text) is 'Records a change of a webhook in fleet.settings_audit.';
