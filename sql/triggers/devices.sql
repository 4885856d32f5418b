create or replace trigger devices_forget_marks
  after update of heartbeat_interval on fleet.devices
  for each statement execute function fleet.forget_marks();

comment on trigger devices_forget_marks on fleet.devices is 'A changed interval moves the time after which a device is offline.';
