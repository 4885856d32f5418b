-- Written so that the views inline it; see fleet.expected_interval().
create or replace function fleet.derive_status(
  p_is_skewed boolean,
  p_last_received_at timestamptz,
  p_expected interval,
  p_offline_after interval,
  p_excused interval,
  p_now timestamptz
) returns text
language sql
immutable
parallel safe
return case
  when p_last_received_at is null then 'new'
  -- Never less than two intervals, because one lost heartbeat is no outage.
  when p_now - p_last_received_at - p_excused > greatest(p_offline_after, 2 * p_expected) then 'offline'
  when p_is_skewed then 'clock_skewed'
  when p_now - p_last_received_at - p_excused > fleet.late_after(p_expected) then 'late'
  else 'online'
end;

comment on function fleet.derive_status(boolean, timestamptz, interval, interval, interval, timestamptz) is
  'The status of a device at this time, by when it was last heard from: new (never), offline (silent for longer than '
  'settings.offline_after and than two expected intervals), clock_skewed (heard from, but its clock is wrong), late (silent for '
  'longer than fleet.late_after()), or online. Silence is counted less p_excused, which is fleet.excused(). '
  'Example: select fleet.derive_status(false, now() - interval ''3 min'', ''60 s'', ''10 min'', ''0'', now());';
