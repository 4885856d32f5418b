create or replace function fleet.recommend_cadence() returns table (cadence text, rows_per_month bigint, reason text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with measured as (
    select sum(p.days) as days, sum(p.rows) as rows
    from (
      select extract(epoch from a.range_end - a.range_start) / 86400 as days,
        greatest(coalesce(nullif(h.row_count, 0), c.reltuples::bigint), 0) as rows
      from fleet.attached_partitions() a
      join pg_class c on c.oid = a.relid
      left join fleet.hb_partitions h on h.partition_name = a.partition_name
      -- Only partitions whose range is over. Empty ones are left out, because the fleet may not have sent yet.
      where a.range_end <= now() and a.range_end > now() - interval '62 days'
    ) p
    where p.rows > 0
  ),
  monthly as (
    select coalesce(round(rows / days * 30), 0)::bigint as rows_per_month, coalesce(days, 0)::integer as days
    from measured
  )
  select case when m.rows_per_month > 5000000 then 'daily' else 'monthly' end, m.rows_per_month,
    case
      when m.days = 0 then 'no whole day with heartbeats is online yet; decide when there is one'
      else format(
        '%s rows a month, measured over %s days: %s 5000000, %s',
        m.rows_per_month, m.days,
        case when m.rows_per_month > 5000000 then 'above' else 'not above' end,
        case
          when m.rows_per_month > 5000000 then 'so retire and archive each day on its own'
          else 'so a partition for each day would only cost planning time'
        end
      )
    end
  from monthly m;
$$;

comment on function fleet.recommend_cadence() is
  'Whether partitions should hold a day or a month, based on the measured volume (daily above 5 million rows a month). '
  'Example: select * from fleet.recommend_cadence();';
