-- From last status, of which each device has a row: of an outer join that begins with a reference table Citus fetches all rows.
create or replace view fleet.device_state with (security_invoker = true) as
select ls.device_id, ls.alias, ls.cohort,
  fleet.derive_status(
    ls.status = 'clock_skewed', ls.last_received_at, ls.expected, (select s.offline_after from fleet.settings s),
    fleet.excused(ls.next_in_s, ls.expected), now()
  ) as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_received_at)::bigint as seconds_since,
  ls.last_received_at, ls.asked as heartbeat_interval, ls.enrolled_at, ls.is_silent, ls.status as said,
  ls.expected as expected_interval,
  coalesce(
    ls.noted_reason,
    case when ls.next_in_s is not null and now() - ls.last_received_at > fleet.late_after(ls.expected)
      then coalesce(ls.stopping, 'sleep') end
  ) as reason,
--!include status/reported_fields.inc.sql
from (
  select l.*, d.alias, d.cohort, d.enrolled_at, greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
  from fleet.device_last_status l
  join fleet.devices d using (device_id)
  left join fleet.cohorts c on c.cohort = d.cohort
  where d.revoked_at is null
) ls;

comment on view fleet.device_state is
  'The form of fleet.device_state for a distributed store: fleet.device_status plus is_silent, said and the interval by which status '
  'is judged. Each node derives the status of its own devices.';
