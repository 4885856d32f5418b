-- No SET clause, and a body that is parsed at creation, so that views inline it. Times are subtracted from each other. An
-- interval is never added to a time, because twice a year the length of a day would then depend on the session's TimeZone.
create or replace function fleet.expected_interval(
  p_own interval,
  p_min interval,
  p_last interval,
  p_changed_at timestamptz,
  p_now timestamptz
) returns interval
language sql
immutable
parallel safe
return greatest(
  p_own,
  p_min,
  -- When a cohort is no longer slowed, its devices learn that from their next answers. Until then they keep the old interval.
  case when p_now - p_changed_at < 2 * p_last then p_last end
);

comment on function fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz) is
  'How often a heartbeat is expected from a device at this time, by devices.heartbeat_interval and its row of cohorts '
  '(min_interval, last_interval, changed_at; nulls if it has none). It is the longer of the device''s own interval and the '
  'cohort''s. For two old intervals after a change, the old interval counts if it is longer. '
  'Example: select fleet.expected_interval(''60 s'', ''5 min'', null, null, now());';
