create or replace function fleet.describe_clock(p_device_id bigint) returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
begin
  return (
    with bounds as (
      select now() - least(s.max_late, s.retention) - interval '1 day' as oldest, now() + s.max_future as newest
      from fleet.settings s
    ),
    arrived as (
      (
        select h.ts, h.received_at
        from fleet.device_heartbeats h
        where h.device_id = p_device_id
          and h.ts >= (select b.oldest from bounds b) and h.ts <= (select b.newest from bounds b)
          and h.received_at <= (select b.newest from bounds b)
        order by h.received_at desc, h.ts desc
        limit 1
      )
      union all
      (
        select q.ts, q.received_at
        from fleet.heartbeat_quarantine q
        where q.device_id = p_device_id and isfinite(q.ts) and q.received_at <= (select b.newest from bounds b)
        order by q.received_at desc, q.ts desc
        limit 1
      )
    )
    select case when m.minutes < 0 then format('lags by %s', t.text) else format('is %s ahead', t.text) end
    from (
      select round(extract(epoch from a.ts - a.received_at) / 60) as minutes
      from arrived a
      order by a.received_at desc, a.ts desc
      limit 1
    ) m
    cross join lateral (
      select case
        when abs(m.minutes) < 120 then format('%s min', abs(m.minutes))
        when abs(m.minutes) < 2880 then format('%s h', round(abs(m.minutes) / 60))
        else format('%s days', round(abs(m.minutes) / 1440))
      end as text
    ) t
    where abs(m.minutes) > 1
  );
end
$$;

comment on function fleet.describe_clock(bigint) is
  'How wrong the clock of a device is, such as "lags by 6 h" or "is 2 h ahead", by the heartbeat that arrived last of those that '
  'were stored or quarantined; null if it is off by a minute or less. '
  'Example: select alias, fleet.describe_clock(device_id) from fleet.list_devices(''clock_skewed'');';
