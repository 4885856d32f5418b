create or replace trigger devices_forget_marks
  after update of heartbeat_interval on fleet.devices
  for each statement execute function fleet.forget_marks();

comment on trigger devices_forget_marks on fleet.devices is
  'A changed interval changes the time after which a device is offline.';

create or replace trigger devices_note_change
  before update of token_hash, revoked_at, cohort, heartbeat_interval on fleet.devices
  for each row execute function fleet.note_change();

comment on trigger devices_note_change on fleet.devices is 'Keeps fleet.devices.changed_at.';

create or replace trigger devices_add_last_status
  after insert on fleet.devices
  referencing new table as changed
  for each statement execute function fleet.add_last_status();

comment on trigger devices_add_last_status on fleet.devices is 'Gives new devices a row of last status.';

-- Not foreign keys: those would cost each upsert of last status a look at fleet.devices.
create or replace trigger devices_forget
  after delete on fleet.devices
  referencing old table as gone
  for each statement execute function fleet.forget_devices();

comment on trigger devices_forget on fleet.devices is 'Deletes what else is stored of a deleted device, except its heartbeats.';

create or replace trigger devices_record_changes
  after update on fleet.devices
  referencing old table as was new table as changed
  for each statement execute function fleet.record_device_changes();

comment on trigger devices_record_changes on fleet.devices is
  'A device that is revoked has a transition, and one with another interval is late after another time.';

-- The functions run as the owner.
create or replace trigger devices_audit
  after update on fleet.devices
  referencing old table as was new table as changed
  for each statement when (current_user <> 'fleet_owner') execute function fleet.audit_devices();

comment on trigger devices_audit on fleet.devices is 'Records an UPDATE by hand in fleet.audit_log.';
