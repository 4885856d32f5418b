create or replace function fleet.late_after(p_expected interval) returns interval
language sql
immutable
parallel safe
return 1.5 * p_expected + interval '15 seconds';

comment on function fleet.late_after(interval) is
  'The silence after which a device is late: one interval, half of one for jitter (60 s ± 15 s is what agents do), and 15 seconds for the way here. Example: select fleet.late_after(''60 s'');';
