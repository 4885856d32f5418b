-- A device's status is a function of when it was heard from, what it said, and the clock. So a change that nobody saw, because a
-- run was missed or Postgres was down, is found later with the time at which it happened: nothing has to be watched all the time.
create or replace function fleet.status_changes(p_device_ids bigint[], p_now timestamptz default null)
returns setof fleet.device_transitions
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
begin
  return query
    with given as (
      select d.device_id, d.cohort, d.revoked_at, ls.noted_status as noted, ls.noted_since, ls.noted_reason,
        ls.last_received_at as heard_at, case ls.status when 'ok' then 'online' else ls.status end as said,
        -- A gap is looked at once, when the heartbeat that ended it arrives.
        case when p_now is null then ls.gap_from end as gap_from,
        fleet.excused(ls.gap_next_in_s, i.expected) as gap_excused,
        ls.battery_pct, ls.network_type, ls.agent_version,
        i.expected, s.offline_after, fleet.excused(ls.next_in_s, i.expected) as excused,
        coalesce(p_now, clock_timestamp()) as seen_at
      from fleet.devices d
      join fleet.device_last_status ls using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      cross join fleet.settings s
      cross join lateral (
        select fleet.expected_interval(
          d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, coalesce(p_now, ls.last_received_at)
        ) as expected
      ) i
      where d.device_id = any (p_device_ids) and ls.noted_status is not null
      offset 0
    ),
    -- Compared as intervals, a month counts 30 days; so it does in seconds.
    timed as (
      select g.*,
        g.gap_from + g.gap_excused + fleet.late_after(g.expected) as gap_late_at,
        g.gap_from + g.gap_excused + o.silence as gap_offline_at,
        g.heard_at + g.excused + fleet.late_after(g.expected) as late_at,
        g.heard_at + g.excused + o.silence as offline_at,
        fleet.is_ahead(g.noted_since, g.seen_at) as is_ahead
      from given g
      cross join lateral (
        select extract(epoch from greatest(g.offline_after, 2 * g.expected)) * interval '1 second' as silence
      ) o
    ),
    steps as (
      select t.*, v.nth, v.to_status, v.from_when
      from timed t
      cross join lateral (
        select
          t.noted in ('late', 'offline') and t.noted_since <= t.gap_from as was_back,
          -- It is late or offline in the silence that the newest heartbeat began, or was until that arrived.
          t.noted in ('late', 'offline') and t.noted_since > coalesce(t.gap_from, t.heard_at) as is_silent,
          t.heard_at is not null and case
            when p_now is null then true
            when t.noted in ('late', 'offline', 'revoked') then t.noted_since <= t.heard_at or t.is_ahead
            else true
          end as is_heard
      ) k
      cross join lateral (
        values
          (1, 'online', t.gap_from, k.was_back),
          (2, 'late', t.gap_late_at, t.heard_at > t.gap_late_at and not k.is_silent and t.noted <> 'clock_skewed'),
          (3, 'offline', t.gap_offline_at, t.heard_at > t.gap_offline_at and not (k.is_silent and t.noted = 'offline')),
          (
            4, 'online', t.heard_at,
            k.is_heard and (
              t.heard_at > t.gap_offline_at or t.noted = 'offline' and not coalesce(k.was_back, false) or t.noted = 'revoked'
            )
          ),
          (5, t.said, t.heard_at, k.is_heard),
          (6, 'late', t.late_at, p_now > t.late_at and t.said <> 'clock_skewed' and k.is_heard),
          (7, 'offline', t.offline_at, p_now > t.offline_at and not (k.is_silent and t.noted = 'offline' and not t.is_ahead)),
          -- What the steps above do not explain: other settings, or another interval.
          (
            8,
            (
              select case when s.status = 'online' and t.said = 'unity_down' then t.said else s.status end
              from fleet.derive_status(
                t.said = 'clock_skewed', t.heard_at, t.expected, t.offline_after, t.excused, p_now
              ) s (status)
            ),
            p_now, p_now is not null and t.heard_at is not null
          )
      ) v (nth, to_status, from_when, applies)
      where v.applies and t.revoked_at is null
      union all
      select t.*, 9, 'revoked', t.revoked_at
      from timed t
      where t.revoked_at is not null
    ),
    followed as (
      select s.*, lag(s.to_status, 1, s.noted) over (partition by s.device_id order by s.nth) as from_status
      from steps s
    ),
    changed as (
      select f.*,
        -- Never before the change that went before, and never in the future.
        least(
          f.seen_at, greatest(max(f.from_when) over w, case when not f.is_ahead then f.noted_since end)
        ) as changed_at
      from followed f
      where f.to_status <> f.from_status
      window w as (partition by f.device_id order by f.nth)
    )
    select null::bigint, null::bigint, c.device_id, c.cohort, c.seen_at, c.changed_at,
      case
        when c.from_status in ('offline', 'revoked') and c.to_status not in ('offline', 'revoked') then 'back'
        else c.to_status
      end,
      c.to_status, c.from_status,
      lag(c.changed_at, 1, c.noted_since) over (partition by c.device_id order by c.nth), null::interval,
      -- Until the silence is over, its reason is what was noted.
      case when c.from_status in ('late', 'offline') and lag(c.nth) over (partition by c.device_id order by c.nth) is null
        then c.noted_reason end,
      null::bigint, c.battery_pct, c.network_type, c.agent_version
    from changed c
    order by c.device_id, c.nth;
end
$$;

comment on function fleet.status_changes(bigint[], timestamptz) is
  'The changes of status that have not been noted of these devices, in their order: without p_now up to the newest heartbeat, as '
  'ingest notes them; with it up to that time. transition_id, position and incident_id are null; reason is that of the silence '
  'which ended. Example: select * from fleet.status_changes(array[42], now());';
