create or replace view fleet.device_status as
select d.device_id, d.alias, d.cohort,
  case
    when ls.status = 'clock_skewed' then 'clock_skewed'
    when ls.last_ts is null then 'new'
    -- A little more than one interval of silence is jitter; offline is never less than two intervals.
    when now() - ls.last_ts > greatest(s.offline_after, 2 * d.heartbeat_interval) then 'offline'
    when now() - ls.last_ts > 1.5 * d.heartbeat_interval + interval '15 seconds' then 'late'
    else 'online'
  end as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_ts)::bigint as seconds_since,
  ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.last_received_at,
  d.heartbeat_interval, d.enrolled_at
from fleet.devices d
cross join fleet.settings s
left join fleet.device_last_status ls using (device_id)
where d.revoked_at is null;

comment on view fleet.device_status is
  'Each enrolled device: new, online, late, offline or clock_skewed, and what it last said. Example: select status, count(*) from fleet.device_status group by status;';
