create or replace function fleet.rollup_plan(p_now timestamptz default now())
returns table (day date, partition_name text, state text, action text, due_at timestamptz)
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
    with days as materialized (
      select g.day::date as day, p.partition_name, p.state
      from fleet.hb_partitions p
      join pg_class t on t.oid = fleet.table_of(p)
      cross join lateral generate_series(p.range_start, least(p.range_end, p_now) - interval '1 day', interval '1 day') as g (day)
    ),
    gone as materialized (
      select case
          when d.revoked_at > d.enrolled_at then (d.revoked_at - interval '1 microsecond')::date + 1
          -- Such a device was never expected.
          else d.enrolled_at::date
        end as day,
        count(*) as devices
      from fleet.devices d
      where d.revoked_at is not null
      group by 1
    ),
    -- The roster of each day. Reads each entry of an index once, and no device that is enrolled.
    rosters as materialized (
      select w.day,
        sum(e.devices) over (order by w.day)
          - (select coalesce(sum(o.devices), 0) from gone o where o.day <= w.day) as devices
      from (
        select d.day, lag(d.day) over (order by d.day) as previous from (select distinct y.day from days y) d
      ) w
      cross join lateral (
        select count(*) as devices
        from fleet.devices d
        where d.enrolled_at >= coalesce((w.previous + 1)::timestamptz, '-infinity') and d.enrolled_at < (w.day + 1)::timestamptz
      ) e
    ),
    late as materialized (
      select l.day, min(l.arrived_at) as since
      from fleet.late_arrivals l
      group by l.day
    )
    select d.day, d.partition_name, d.state,
      case when r.day is not null and r.devices = n.devices then 'rebuild' else 'roll_up' end,
      case when r.devices = n.devices or n.devices = 0 then l.since else (d.day + 1)::timestamptz end
    from days d
    join rosters n on n.day = d.day
    cross join (select i.* from fleet.settings i where fleet.not_in_future(p_now) is not null) s
    left join fleet.rolled_up_days r on r.day = d.day
    left join late l on l.day = d.day
    where
      -- Not rolled up yet, or rolled up before its roster changed, for example by devices enrolled with an earlier date.
      d.day >= p_now - greatest(s.rollups_keep, s.retention) and coalesce(r.devices, 0) <> n.devices
      -- Also a day without a roster: heartbeats from before their device was enrolled must not wait forever.
      or l.day is not null
    order by d.day;
end
$$;

comment on function fleet.rollup_plan(timestamptz) is
  'Lists the past days to roll up, and those to rebuild because of late arrivals, and since when each is due. '
  'Example: select * from fleet.rollup_plan();';
