create or replace function fleet.audit_settings() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet.settings_audit (setting, old_value, new_value)
  select n.key, o.value, n.value
  from jsonb_each_text(to_jsonb(new)) n
  join jsonb_each_text(to_jsonb(old)) o using (key)
  where n.value is distinct from o.value;
  return null;
end
$$;

comment on function fleet.audit_settings() is 'Trigger on fleet.settings: records every change in fleet.settings_audit.';
