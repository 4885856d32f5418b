create or replace function fleet.silence_at(p_now timestamptz)
returns table (
  cohort text, devices bigint, active bigint, gone_quiet bigint, share double precision, usual_share double precision,
  ratio double precision, is_alarming boolean, is_muted boolean, muted_reason text, window_start timestamptz,
  counted_at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
#variable_conflict use_column
declare
  -- Before the statement: a function that reads distributed tables cannot be called in one that reads others of Citus.
  v_is_down boolean := fleet.is_ingest_down(fleet.newest_received_at(p_now), fleet.not_in_future(p_now));
begin
  return query
    with ingest as materialized (
      select
        case
          when v_is_down then 'ingest_down'
          when p_now < w.gap_to + s.silence_window or w.gap_from is not null and w.gap_to is null
            or fleet.postgres_started_at() > w.looked_at then 'ingest_resumed'
          when w.looked_at < p_now - s.ingest_gap then 'unwatched'
        end as muted_reason,
        coalesce(k.window_start, fleet.silence_window_start(p_now)) as window_start,
        coalesce(k.counted_at, p_now) as counted_at
      from fleet.settings s
      cross join fleet.silence_watch w
      left join fleet.fleet_counts k on k.place = 1 and fleet.counts_hold(p_now)
    ),
    -- How long each device is overdue. OFFSET 0 has it computed once.
    heard as (
      select d.cohort,
        p_now - ls.last_received_at - fleet.excused(ls.next_in_s, i.expected) - fleet.late_after(i.expected) as overdue
      from fleet.devices d
      left join fleet.device_last_status ls using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      cross join lateral (
        select fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
      ) i
      where d.revoked_at is null
      offset 0
    ),
    counted as (
      select h.cohort, count(*) as devices,
        count(*) filter (where h.overdue <= (select p_now - i.window_start from ingest i)) as active,
        count(*) filter (
          where h.overdue > interval '0' and h.overdue <= (select p_now - i.window_start from ingest i)
        ) as gone_quiet
      from heard h
      group by h.cohort
    ),
    summed as (
      select row_number() over (order by grouping(k.cohort) desc, k.cohort) as place, coalesce(k.cohort, '(all)') as cohort,
        coalesce(sum(k.devices), 0)::bigint as devices, coalesce(sum(k.active), 0)::bigint as active,
        coalesce(sum(k.gone_quiet), 0)::bigint as gone_quiet
      from counted k
      group by grouping sets ((k.cohort), ())
    ),
    -- Only one of the two halves runs.
    listed as (
      select k.place, k.cohort, k.devices, k.active, k.gone_quiet
      from fleet.fleet_counts k
      where fleet.counts_hold(p_now)
      union all
      select s.place, s.cohort, s.devices, s.active, s.gone_quiet
      from summed s
      where not fleet.counts_hold(p_now)
    )
    select m.cohort, m.devices, m.active, m.gone_quiet, r.share, u.usual_share, r.share / nullif(u.usual_share, 0),
      r.muted_reason is null and m.gone_quiet >= s.silence_min_devices and r.share >= s.silence_share
        and r.share >= s.silence_ratio * u.usual_share,
      r.muted_reason is not null, r.muted_reason, i.window_start, i.counted_at
    from listed m
    cross join ingest i
    cross join fleet.settings s
    left join fleet.silence_usual u on u.cohort = m.cohort
    cross join lateral (
      select m.gone_quiet / nullif(m.active, 0)::double precision as share,
        case
          when i.muted_reason is not null then i.muted_reason
          when m.active < s.silence_min_devices then 'few_devices'
          -- 144 samples are a day. Before that, what is usual at night is unknown.
          when u.usual_share is null or u.samples < 144 then 'few_samples'
        end as muted_reason
    ) r
    -- A login of fleet.create_reader() sees its cohorts, and not what is true of the whole fleet.
    where (select fleet.seen_cohorts()) is null or m.cohort = any ((select fleet.seen_cohorts())::text[])
    order by m.place;
end
$$;

comment on function fleet.silence_at(timestamptz) is
  'fleet.fleet_silence at a given time, from what is known now. Defined in docs/decisions/0017. Uses the counts of '
  'fleet.count_fleet() if they hold. Example: select * from fleet.silence_at(now());';
