-- Without OFFSET, Citus sorts only within each shard as soon as a query reads from the view.
create or replace view fleet.missed_beats with (security_invoker = true) as
select m.device_id, m.alias, m.cohort, m.status, m.last_ts, m.heard_at, m.heartbeat_interval,
  fleet.beats_missed(m.silence, m.heartbeat_interval) as missed_beats
from (
  select h.device_id, h.alias, h.cohort, h.status, h.last_ts, h.last_received_at as heard_at,
    h.expected_interval as heartbeat_interval,
    now() - coalesce(h.last_received_at, h.enrolled_at) - fleet.excused(h.next_in_s, h.expected_interval) as silence
  from fleet.device_state h
) m
where m.silence >= 1.5 * m.heartbeat_interval and fleet.beats_missed(m.silence, m.heartbeat_interval) > 0
order by missed_beats desc, m.device_id
offset 0;

comment on view fleet.missed_beats is
  'The form of fleet.missed_beats for a distributed store: devices with missing heartbeats, most first.';
