-- No SET clause and a body bound when it is made, so that views have it inline. Times are subtracted, never an interval added to
-- one: what a day is long would then depend on the session's TimeZone, twice a year.
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
  -- A cohort that is slowed no longer hears of it with its next answers; until then its devices keep to the old pace.
  case when p_now - p_changed_at < 2 * p_last then p_last end
);

comment on function fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz) is
  'How often a device is to be heard from at this time, by devices.heartbeat_interval and its row of cohorts (min_interval, last_interval, changed_at; nulls when it has none): the longer of its own and the cohort''s, and for two old intervals after a change the old one if that is longer. Example: select fleet.expected_interval(''60 s'', ''5 min'', null, null, now());';
