-- Only one of the two halves runs: the choice is made once, before the first row. Devices are sorted before they are joined, so
-- that a reader who wants the first ones does not wait for all. OFFSET 0 keeps the planner from joining the whole fleet to a few
-- devices, because it cannot guess how many are offline.
create or replace view fleet.devices_offline with (security_invoker = true) as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip,
  ls.last_received_at, d.reason
from (
  select l.device_id, l.last_received_at
  from (
    select m.device_id, m.last_received_at, m.next_in_s
    from fleet.device_last_status m
    where fleet.marks_hold() and m.is_silent
    union all
    select a.device_id, a.last_received_at, a.next_in_s
    from fleet.device_last_status a
    where not fleet.marks_hold()
  ) l
  -- Nobody is offline before the time for which it announced its next heartbeat.
  where now() - l.last_received_at > greatest((select s.offline_after from fleet.settings s), l.next_in_s * interval '1 second')
  order by l.last_received_at
) ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where d.status = 'offline'
order by ls.last_received_at;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first, with the reason as in fleet.device_transitions. '
  'Example: select * from fleet.devices_offline where seconds_since > 720;';
