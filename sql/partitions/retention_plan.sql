create or replace function fleet.retention_plan(p_retention interval default null, p_now timestamptz default now())
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, state text, row_count bigint, bytes_size bigint,
  action text, reason text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p.partition_name, p.range_start, p.range_end, p.state,
    coalesce(p.row_count, greatest(c.reltuples, 0)::bigint),
    fleet.bytes_of(p),
    case
      when p.range_end > p_now - r.retention then 'keep'
      when p.held_reason is not null or p.state = 'restored' or h.source is not null then 'hold'
      else 'retire'
    end,
    case
      when p.range_end > p_now - r.retention and p.range_start > p_now then 'created ahead of time'
      when p.range_end > p_now - r.retention then format('not entirely older than %s', r.retention)
      when p.held_reason is not null then format('held: %s', p.held_reason)
      when h.source is not null then format('%s is being imported; confirm or abandon the import', h.source)
      when p.state = 'restored' then 'restored from the archive; release it with fleet.release_partition()'
      else format('all of it is older than %s', r.retention)
    end
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  cross join (
    select coalesce(p_retention, s.retention) as retention
    from fleet.settings s
    where fleet.not_in_future(p_now) is not null
  ) r
  left join lateral (
    select min(o.source) as source from fleet.import_holds() o where o.since < p.range_end
  ) h on true
  where p.state in ('active', 'restored')
  order by p.range_start;
$$;

comment on function fleet.retention_plan(interval, timestamptz) is
  'What a retention would do with each partition, and why; changes nothing. '
  'Example: select * from fleet.retention_plan(''60 days'') where action = ''retire'';';
