-- The setting as a subquery: joined, a table of one row is guessed to have hundreds, and so is everything that follows.
create or replace view fleet.device_state as
select d.device_id, d.alias, d.cohort,
  case
    when ls.status = 'clock_skewed' then 'clock_skewed'
    when ls.last_ts is null then 'new'
    -- A little more than one interval of silence is jitter; offline is never less than two intervals.
    when now() - ls.last_ts > greatest((select s.offline_after from fleet.settings s), 2 * i.expected) then 'offline'
    when now() - ls.last_ts > 1.5 * i.expected + interval '15 seconds' then 'late'
    else 'online'
  end as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_ts)::bigint as seconds_since,
  ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at,
  ls.is_silent, ls.status as said
from fleet.devices d
left join fleet.device_last_status ls using (device_id)
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    -- A cohort that is slowed no longer hears of it with its next answers; until then its devices keep to the old pace.
    greatest(
      d.heartbeat_interval,
      c.min_interval,
      case when now() < c.changed_at + 2 * c.last_interval then c.last_interval end
    ) as expected
) i
where d.revoked_at is null;

comment on view fleet.device_state is
  'fleet.device_status and what its indexes are on: is_silent, the mark of devices that may be offline, and said, the stored status. Behind the other views and fleet.list_devices().';
