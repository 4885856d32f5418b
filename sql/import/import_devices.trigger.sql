-- The functions of imports run as the owner.
create or replace trigger import_devices_audit_insert
  after insert on fleet.import_devices
  referencing new table as is_now
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_import_devices();
comment on trigger import_devices_audit_insert on fleet.import_devices is 'Records an INSERT by hand in fleet.audit_log.';

create or replace trigger import_devices_audit_update
  after update on fleet.import_devices
  referencing old table as was new table as is_now
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_import_devices();
comment on trigger import_devices_audit_update on fleet.import_devices is 'Records an UPDATE by hand in fleet.audit_log.';

create or replace trigger import_devices_audit_delete
  after delete on fleet.import_devices
  referencing old table as was
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_import_devices();
comment on trigger import_devices_audit_delete on fleet.import_devices is 'Records a DELETE by hand in fleet.audit_log.';
