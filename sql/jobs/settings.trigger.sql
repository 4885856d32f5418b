create or replace trigger settings_audit
  after update on fleet.settings
  for each row execute function fleet.audit_settings();

comment on trigger settings_audit on fleet.settings is 'Records every change in fleet.audit_log.';
