create or replace function fleet.late_after(p_expected interval) returns interval
language sql
immutable
parallel safe
return 1.5 * p_expected + interval '15 seconds';

comment on function fleet.late_after(interval) is
  'The silence after which a device is late: one interval, half an interval for jitter (agents send every 60 s ± 15 s), and 15 '
  'seconds for transport. '
  'Example: select fleet.late_after(''60 s'');';
