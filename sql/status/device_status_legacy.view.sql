-- Partitions are read newest first until one has a row. No row can be further in the future than settings.max_future allows.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    q.received_at > coalesce(h.received_at, '-infinity'), h.ts, i.expected, (select s.offline_after from fleet.settings s), now()
  ) as status,
  h.ts as last_ts,
  extract(epoch from now() - h.ts)::bigint as seconds_since,
  h.battery_pct, h.network_type, h.unity_running, h.signal_dbm, h.agent_version, h.ip,
  greatest(h.received_at, q.received_at) as last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at, h.extra
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (  -- as in fleet.device_state
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
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
  'The same as fleet.device_status, but read from the heartbeats and without fleet.device_last_status. Slow: for comparison, '
  'and the server''s fallback (READ_FROM_LAST_STATUS=false). '
  'Example: select * from fleet.device_status_legacy where device_id = 42;';
