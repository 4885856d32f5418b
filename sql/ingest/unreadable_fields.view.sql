create or replace view fleet.unreadable_fields with (security_invoker = true) as
select f.device_id, d.alias, d.cohort, f.field, f.times, f.first_at, f.last_at, f.example
from fleet.device_unreadable_fields f
join fleet.devices d using (device_id);

comment on view fleet.unreadable_fields is
  'What agents send that cannot be read, by device and field: how often, since when, and the last value. An optional field is left '
  'out and the rest of the heartbeat counts. For ts, device_id and body the heartbeat was refused. Kept for '
  'settings.quarantine_keep. Example: select * from fleet.unreadable_fields where last_at > now() - interval ''1 hour'';';
