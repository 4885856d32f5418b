-- The setting is a subquery. If fleet.settings were joined, the planner would take its one row for hundreds, and all later
-- estimates would be wrong too.
create or replace view fleet.device_state with (security_invoker = true) as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    ls.status = 'clock_skewed', ls.last_received_at, i.expected, (select s.offline_after from fleet.settings s),
    fleet.excused(ls.next_in_s, i.expected), now()
  ) as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_received_at)::bigint as seconds_since,
  ls.last_received_at, i.asked as heartbeat_interval, d.enrolled_at, ls.is_silent, ls.status as said,
  i.expected as expected_interval,
  coalesce(
    ls.noted_reason,
    case when ls.next_in_s is not null and now() - ls.last_received_at > fleet.late_after(i.expected)
      then coalesce(ls.stopping, 'sleep') end
  ) as reason,
--!include status/reported_fields.inc.sql
from fleet.devices d
left join fleet.device_last_status ls using (device_id)
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
where d.revoked_at is null;

comment on view fleet.device_state is
  'fleet.device_status plus the columns that indexes cover: is_silent (the mark of devices that may be offline) and said (the '
  'stored status). Also has the interval by which status is judged; silence is counted less '
  'fleet.excused(next_in_s, expected_interval). Used by the other views and fleet.list_devices(). '
  'Example: select alias, expected_interval from fleet.device_state where device_id = 42;';
