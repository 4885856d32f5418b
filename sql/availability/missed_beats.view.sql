create or replace view fleet.missed_beats with (security_invoker = true) as
select h.device_id, h.alias, h.cohort, h.status, h.last_ts, h.last_received_at as heard_at,
  h.expected_interval as heartbeat_interval, m.missed_beats
from fleet.device_state h
cross join lateral (
  select fleet.beats_missed(
    now() - coalesce(h.last_received_at, h.enrolled_at) - fleet.excused(h.next_in_s, h.expected_interval), h.expected_interval
  ) as missed_beats
) m
-- The first condition is cheap, and leaves few rows for the second.
where now() - coalesce(h.last_received_at, h.enrolled_at) - fleet.excused(h.next_in_s, h.expected_interval)
  >= 1.5 * h.expected_interval
  and m.missed_beats > 0
order by m.missed_beats desc, h.device_id;

comment on view fleet.missed_beats is
  'Devices with missing heartbeats: how many each has missed in a row until now, since its last heartbeat, or since it was '
  'enrolled if it never sent one. Until the time for which a device announced its next heartbeat it misses none. Most first. '
  'Example: select alias, missed_beats from fleet.missed_beats where missed_beats >= 10;';
