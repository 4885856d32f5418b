create or replace function fleet.import_plan(
  p_source regclass,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null
) returns table (item text, detail text, rows bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set jit = off
as $$
#variable_conflict use_column
declare
  c_blocks constant integer := 256;
  a fleet.imports := fleet.describe_source(p_source, p_columns, p_unknown_devices, p_oldest, true);
begin
  return query
    select 'column', format(
      '%s: %s', k.name,
      coalesce(
        t.attname || ', ' || format_type(t.atttypid, t.atttypmod),
        case k.name when 'received_at' then 'none, ts is used' else 'none, stays null' end
      ) || case when k.name = 'device_id' then case a.match_by
        when 'device_id' then ', the device_id of fleet.devices'
        when 'alias' then ', the alias in fleet.devices'
        else ', as fleet.import_devices says'
      end else '' end
    ), null::bigint
    from fleet.archive_columns('fleet.device_heartbeats') k
    left join pg_attribute t on t.attrelid = p_source and t.attname = a.columns ->> k.name
    order by k.position;
  return query
    with given as (
      select r.reason, (r.beat).ts as ts, r.source_device
      from generate_series(0, pg_relation_size(p_source) / current_setting('block_size')::bigint, c_blocks) as g (block)
      cross join lateral fleet.read_source(a, g.block, g.block + c_blocks) r
    ),
    days as materialized (
      select g.reason, g.ts::date as day, min(g.ts) as first_ts, max(g.ts) as last_ts, count(*) as rows,
        count(distinct g.source_device) filter (where g.reason = 'unknown_device') as devices
      from given g
      group by 1, 2
    )
    select
      case
        when d.reason is null then 'taken'
        when d.reason = 'unknown_device' and a.unknown_devices = 'enroll' then 'enrolled and taken'
        else 'refused: ' || d.reason
      end,
      format('%s to %s', min(d.first_ts), max(d.last_ts)), sum(d.rows)::bigint
    from days d
    group by d.reason
    union all
    select 'partitions', format('to be created, from %s to %s', min(m.day), max(m.day)), count(*)
    from (
      select w.day::date as day
      from (select min(d.day) as first_day, max(d.day) as last_day from days d where d.reason is null) s
      cross join generate_series(s.first_day, s.last_day, interval '1 day') as w (day)
      except
      select generate_series(p.range_start, p.range_end - interval '1 day', interval '1 day')::date
      from fleet.attached_partitions() p
    ) m
    where not fleet.retired_ranges() @> m.day::timestamptz
    having count(*) > 0;
end
$$;

comment on function fleet.import_plan(regclass, jsonb, text, timestamptz) is
  'Dry run of fleet.import_table(): which columns it would take, how many rows, which rows it would refuse and why, and which '
  'partitions it would create. Reads the whole table and changes nothing. '
  'Example: select * from fleet.import_plan(''public.device_heartbeats'');';
