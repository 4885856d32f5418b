create or replace view fleet.recent_changes with (security_invoker = true) as
select t.transition_id, t.at, t.since, t.device_id, d.alias, t.cohort, t.event, t.previous_status, t.previous_for, t.reason,
  t.incident_id
from fleet.device_transitions t
left join fleet.devices d using (device_id)
-- Only the first comparison can use the index.
where t.at > now() - interval '1 hour' and t.event <> 'late' and not (t.event = 'online' and t.previous_status = 'late')
order by t.at desc, t.transition_id desc;

comment on view fleet.recent_changes is
  'What changed in the last hour, newest first: fleet.device_transitions with the names of the devices, without those that were '
  'only late. Example: select alias, event, reason, previous_for from fleet.recent_changes limit 20;';
