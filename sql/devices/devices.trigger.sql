create or replace trigger devices_forget_marks
  after update of heartbeat_interval on fleet.devices
  for each statement execute function fleet.forget_marks();

comment on trigger devices_forget_marks on fleet.devices is
  'A changed interval changes the time after which a device is offline.';

create or replace trigger devices_token_change
  after update of token_hash, revoked_at, cohort, heartbeat_interval or delete on fleet.devices
  for each row execute function fleet.record_token_change();

comment on trigger devices_token_change on fleet.devices is 'Tells servers to drop what they cached for this device.';

create or replace trigger devices_add_last_status
  after insert on fleet.devices
  referencing new table as changed
  for each statement execute function fleet.add_last_status();

comment on trigger devices_add_last_status on fleet.devices is 'Gives new devices a row of last status.';
