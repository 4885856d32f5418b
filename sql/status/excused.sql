-- Written so that the views inline it; see fleet.expected_interval(). GREATEST() ignores null.
create or replace function fleet.excused(p_next_in_s integer, p_expected interval) returns interval
language sql
immutable
parallel safe
return greatest(p_next_in_s * interval '1 second' - p_expected, interval '0');

comment on function fleet.excused(integer, interval) is
  'How much longer than usual a device may be silent, because its newest heartbeat said when the next one comes (next_in_s). '
  'Silence is counted less this, so a device that keeps its promise is not late. 0 without a promise. '
  'Example: select fleet.excused(3600, ''60 s'');';
