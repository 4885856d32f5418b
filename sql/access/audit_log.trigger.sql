create or replace trigger audit_log_keep
  before update or delete on fleet.audit_log
  for each row execute function fleet.keep_audit_log();
comment on trigger audit_log_keep on fleet.audit_log is 'Rows can only be added, and be pruned by age.';
create or replace trigger audit_log_keep_all
  before truncate on fleet.audit_log
  for each statement execute function fleet.keep_audit_log();
comment on trigger audit_log_keep_all on fleet.audit_log is 'The table cannot be emptied.';
