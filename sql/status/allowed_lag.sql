create or replace function fleet.allowed_lag(p_offline_after interval, p_max_late interval) returns interval
language sql
immutable
parallel safe
return greatest(interval '1 minute', least(p_offline_after, p_max_late));

comment on function fleet.allowed_lag(interval, interval) is
  'How much later than its ts the newest heartbeat of a device may arrive. If it arrives later than that, the clock of the device '
  'is wrong. '
  'Example: select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s;';
