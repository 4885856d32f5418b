-- Partitions are read newest first until one has a row. None can be further ahead than settings.max_future may be.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  case
    when q.received_at > coalesce(h.received_at, '-infinity') then 'clock_skewed'
    when h.ts is null then 'new'
    when now() - h.ts > greatest((select s.offline_after from fleet.settings s), 2 * i.expected) then 'offline'
    when now() - h.ts > 1.5 * i.expected + interval '15 seconds' then 'late'
    else 'online'
  end as status,
  h.ts as last_ts,
  extract(epoch from now() - h.ts)::bigint as seconds_since,
  h.battery_pct, h.network_type, h.unity_running, h.signal_dbm, h.agent_version, h.ip,
  greatest(h.received_at, q.received_at) as last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (  -- as in fleet.device_state
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    greatest(
      d.heartbeat_interval,
      c.min_interval,
      case when now() < c.changed_at + 2 * c.last_interval then c.last_interval end
    ) as expected
) i
left join lateral (
  select b.*
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts <= now() + interval '1 day'
  order by b.ts desc
  limit 1
) h on true
left join lateral (
  select max(r.received_at) as received_at
  from fleet.heartbeat_quarantine r
  where r.device_id = d.device_id and r.reason in ('too_late', 'in_future')
) q on true
where d.revoked_at is null;

comment on view fleet.device_status_legacy is
  'What fleet.device_status says, from the heartbeats themselves and without fleet.device_last_status: slow, for comparison and as the server''s way out (READ_FROM_LAST_STATUS=false). Example: select * from fleet.device_status_legacy where device_id = 42;';
