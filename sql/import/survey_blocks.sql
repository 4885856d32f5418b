create or replace function fleet.survey_blocks(a fleet.imports, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_last bigint := least(a.end_block, a.next_block + a.batch_blocks);
  v_rows bigint;
begin
  with given as materialized (
    select r.source_device, (r.beat).ts as ts,
      -- Devices that are about to be enrolled count as enrolled.
      case when not (r.reason = 'unknown_device' and a.unknown_devices = 'enroll') then r.reason end as reason,
      r.reason = 'unknown_device' as is_unknown
    from fleet.read_source(a, a.next_block, v_last) r
  ),
  ranges as (
    insert into fleet.import_ranges (source, first_block, last_block, first_ts, last_ts, rows_refused)
    select a.source, a.next_block, v_last, min(g.ts) filter (where g.reason is null), max(g.ts) filter (where g.reason is null),
      count(g.reason)
    from given g
  ),
  days as (
    insert into fleet.import_days as d (source, day, rows_found)
    select a.source, g.ts::date, count(*)
    from given g
    where g.reason is null
    group by g.ts::date
    on conflict (source, day) do update
      set rows_found = d.rows_found + excluded.rows_found
  ),
  refusals as (
    insert into fleet.import_refusals as f (source, reason, source_device, rows, first_ts, last_ts)
    select a.source, case when g.is_unknown then 'unknown_device' else g.reason end,
      case when g.is_unknown then coalesce(g.source_device, '') else '' end, count(*), min(g.ts), max(g.ts)
    from given g
    where g.reason is not null or g.is_unknown
    group by 2, 3
    on conflict (source, reason, source_device) do update
      set rows = f.rows + excluded.rows, first_ts = least(f.first_ts, excluded.first_ts),
        last_ts = greatest(f.last_ts, excluded.last_ts)
  )
  select count(*) into v_rows from given;

  update fleet.imports f
  set next_block = v_last, step_done = v_last, step_rows = f.step_rows + v_rows,
    batch_blocks = fleet.next_batch_blocks(a.batch_blocks, v_rows, p_batch_rows)
  where f.source = a.source;
  return v_last < a.end_block;
end
$$;

comment on function fleet.survey_blocks(fleet.imports, integer) is
  'Counts the next blocks of a table that is being imported: rows by day, refused rows by reason, and which blocks hold which '
  'days; false after the last block.';
