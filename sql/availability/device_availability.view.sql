create or replace view fleet.device_availability with (security_invoker = true) as
select a.day, a.device_id, d.alias, d.cohort, a.heartbeat_interval, a.expected, a.seen,
  round(100.0 * a.seen / nullif(a.expected, 0), 2) as availability_pct,
  a.beats, a.longest_gap, a.first_ts, a.last_ts, a.rolled_up_at
from fleet.device_availability_daily a
join fleet.devices d using (device_id);

comment on view fleet.device_availability is
  'Each device on each past UTC day on which it was expected, as the nightly rollup counted it: heartbeats expected and seen, '
  'and the longest silence. Filter by a day or a range of days. For today, or for a total over several days, use '
  'fleet.device_availability(from, to). '
  'Example: select alias, availability_pct, longest_gap from fleet.device_availability where day = current_date - 1 order by '
  'availability_pct;';
