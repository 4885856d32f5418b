-- Partitions are read newest first until one has a row.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    q.received_at > coalesce(h.heard_at, '-infinity') and q.is_skewed
      or h.heard_at - h.ts > s.allowed_lag or a.heard_at - h.ts > greatest(s.allowed_lag, 2 * d.heartbeat_interval),
    greatest(h.heard_at, a.heard_at, r.heard_at), i.expected, s.offline_after,
    fleet.excused(ls.next_in_s, i.expected), now()
  ) as status,
  h.ts as last_ts,
  extract(epoch from now() - greatest(h.heard_at, a.heard_at, r.heard_at))::bigint as seconds_since,
  greatest(h.heard_at, a.heard_at, r.heard_at) as last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at,
  coalesce(
    (
      select case when t.status in ('late', 'offline') then t.reason end
      from fleet.device_transitions t
      where t.device_id = d.device_id
      order by t.transition_id desc
      limit 1
    ),
    case when ls.next_in_s is not null
      and now() - greatest(h.heard_at, a.heard_at, r.heard_at) > fleet.late_after(i.expected)
      then coalesce(ls.stopping, 'sleep') end
  ) as reason,
--!include status/reported_fields.inc.sql
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (  -- as in fleet.device_state
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
cross join lateral (
  select s.offline_after, s.max_future, s.max_late,
    fleet.allowed_lag(s.offline_after, s.max_late) as allowed_lag
  from fleet.settings s
  limit 1
) s
left join lateral (
  select b.*, case when b.received_at <= now() + s.max_future then b.received_at else b.ts end as heard_at
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts <= now() + s.max_future
  order by b.ts desc
  limit 1
) h on true
left join lateral (
  select max(b.received_at) as heard_at
  from fleet.heartbeat_quarantine b
  where b.device_id = d.device_id and b.received_at <= now() + s.max_future
) r on true
-- The newest refused heartbeat that says more than the newest stored one; see fleet.record_others().
left join lateral (
  select b.received_at, b.payload,
    b.received_at - b.ts > s.allowed_lag or b.ts - b.received_at > s.max_future as is_skewed
  from fleet.heartbeat_quarantine b
  where b.device_id = d.device_id and b.received_at <= now() + s.max_future
    and (h.ts is null or h.ts < b.ts or b.received_at - h.ts > s.allowed_lag)
  order by b.received_at desc, b.ts desc
  limit 1
) q on true
-- What a refused heartbeat says, if it arrived after the newest stored one. Without the row type of device_heartbeats, so that its
-- columns can be changed.
cross join lateral (
  select
--!include status/reported_fields.inc.sql
  from (select h.*) ls
  where q.received_at is null or q.received_at <= h.heard_at
  union all
  select
--!include status/reported_fields.inc.sql
  from jsonb_populate_record(null::fleet.device_last_status, fleet.reported_values(q.payload)) ls
  where q.received_at > coalesce(h.heard_at, '-infinity')
) ls
-- Heartbeats that arrived after the newest one. They matter only if the newest one alone does not make the device online.
left join lateral (
  select max(b.received_at) as heard_at
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts < h.ts
    -- The hour more is for sessions in a zone whose clocks change.
    and b.ts >= now() - s.max_late - greatest(s.offline_after, 2 * i.expected) - fleet.excused(ls.next_in_s, i.expected)
      - interval '1 hour'
    and b.received_at <= now() + s.max_future
    and now() - least(h.ts, h.heard_at) > least(s.offline_after, s.allowed_lag, fleet.late_after(i.expected))
) a on true
where d.revoked_at is null;

comment on view fleet.device_status_legacy is
  'The same as fleet.device_status, but read from the stored and the quarantined heartbeats and without '
  'fleet.device_last_status. What was neither stored nor quarantined, such as a duplicate, does not count here. Slow: for '
  'comparison, and the server''s fallback (READ_FROM_LAST_STATUS=false). '
  'Example: select * from fleet.device_status_legacy where device_id = 42;';
