create or replace function fleet.settle_plan(p_now timestamptz default now())
returns table (
  partition_name text, range_start timestamptz, due_at timestamptz, row_count bigint, estimate interval, action text, reason text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with given as (
    -- An hour more than ingest accepts, for batches that wait to be written. Points in time are compared, as ingest does: a
    -- difference of times that is compared with a month counts 30 days.
    select s.settle, s.settle_max_wait, s.retention, least(s.max_late, s.retention) as late, interval '1 hour' as margin,
      -- The fastest of the last ten: one night on a busy machine must not make every later day look too large.
      coalesce(
        (
          select max(l.rows * 1000::double precision / l.duration_ms)
          from (
            select e.rows, e.duration_ms
            from fleet.events e
            where e.event = 'partition.settle' and e.rows >= 100000 and e.duration_ms > 0
              and p_now - e.at < interval '30 days'
            order by e.at desc
            limit 10
          ) l
        ),
        400000::double precision  -- measured on two shared cores
      ) as rows_per_second
    from fleet.settings s
    where fleet.not_in_future(p_now) is not null
  ),
  found as (
    select p.partition_name, p.range_start, p.range_end, p.settled_at, g.*, c.oid as relid, fleet.is_settled(c.oid) as is_settled,
      coalesce(p.row_count, greatest(c.reltuples, 0)::bigint) as row_count,
      -- To be retired instead: this night or as soon as its import is confirmed.
      p.state = 'active' and p.held_reason is null and p.range_end <= p_now - g.retention as is_leaving,
      exists (select from fleet.import_holds() h where h.since < p.range_end) as is_imported
    from fleet.hb_partitions p
    join pg_class c on c.oid = fleet.table_of(p) and c.relispartition
    cross join given g
    where p.state in ('active', 'restored')
      -- A partition without rows has nothing to sort, and its key is one page.
      and (p.settled_at is not null or c.relpages > 0 or fleet.has_pages(c.oid))
  ),
  judged as (
    select f.*, f.row_count / f.rows_per_second * interval '1 second' as estimate,
      case
        when f.settled_at is not null and not f.is_settled then 'unsettle'
        when f.settled_at is not null then case when f.range_end > p_now - f.late then 'unsettle' end
        when f.range_end > p_now - f.late - f.margin or f.is_leaving or f.is_imported then null
        when fleet.dedupe_index(f.relid) is null then 'blocked'
        when not f.settle then 'off'
        when f.row_count / f.rows_per_second * interval '1 second' > f.settle_max_wait then 'too_large'
        else 'settle'
      end as action
    from found f
  )
  select j.partition_name, j.range_start, j.range_end + j.late + j.margin, j.row_count, j.estimate, j.action,
    case j.action
      when 'unsettle' then case
        when j.is_settled then format('heartbeats of the last %s are accepted again', j.late)
        else 'its constraint device_heartbeats_settled is gone, so it takes rows and has no dedupe key'
      end
      when 'blocked' then 'it has no valid dedupe key, so it may have duplicates'
      when 'off' then 'settings.settle is false'
      when 'too_large' then format(
        'its readers would wait for about %s, longer than settings.settle_max_wait (%s)', date_trunc('second', j.estimate),
        j.settle_max_wait
      )
      when 'settle' then format(
        'no heartbeat can come for it; its readers wait for about %s s', greatest(1, ceil(extract(epoch from j.estimate)))
      )
    end
  from judged j
  where j.action is not null
  order by j.range_start desc;
$$;

comment on function fleet.settle_plan(timestamptz) is
  'What the next night or hour would do with the order of past partitions, newest first, and why: settle, unsettle (max_late '
  'was raised, or the constraint was dropped by hand), too_large, off or blocked. estimate is how long readers of that day '
  'would wait. Example: select * from fleet.settle_plan();';
