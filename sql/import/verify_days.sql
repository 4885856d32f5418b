create or replace function fleet.verify_days(a fleet.imports, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set enable_nestloop = off  -- the planner cannot guess how many rows there are
as $$
declare
  v_first date;
  v_last date;
  v_rows bigint;
  v_bad bigint;
begin
  select min(w.day), max(w.day), sum(w.rows_found) into v_first, v_last, v_rows
  from (
    select d.day, d.rows_found, sum(d.rows_found) over (order by d.day) - d.rows_found as rows_before
    from fleet.import_days d
    where d.source = a.source and d.rows_found > 0 and d.checked_at is null
  ) w
  where w.rows_before < p_batch_rows;

  if v_first is not null then
    -- One snapshot: a row that the trigger forwards is visible on both sides or on neither.
    execute format(
      $query$
        with given as (
          select r.beat
          from fleet.import_ranges g
          cross join lateral fleet.read_source($1, g.first_block, g.last_block) r
          where g.source = ($1).source and g.first_ts < $3 and g.last_ts >= $2
            and r.reason is null and (r.beat).ts >= $2 and (r.beat).ts < $3
        ),
        source as materialized (
          select b.device_id, fleet.heartbeat_bucket(b.ts) as bucket, b.ts, b.received_at,
            %1$s as checksum
          from (select (g.beat).* from given g) b
        ),
        store as materialized (
          select b.device_id, fleet.heartbeat_bucket(b.ts) as bucket, b.ts, b.received_at,
            %1$s as checksum
          from fleet.device_heartbeats b
          where b.ts >= $2 and b.ts < $3
        ),
        buckets as (
          select s.bucket::date as day, count(*) as rows, h.checksum as store_checksum,
            coalesce(max(s.checksum) filter (where s.checksum = h.checksum), min(s.checksum)) as source_checksum,
            case
              when h.checksum is null then 'missing'
              when bool_or(s.checksum = h.checksum) then 'kept'
              when bool_or(s.ts = h.ts and s.received_at = h.received_at) then 'changed'
              else 'foreign'  -- from the new server, which had the bucket first
            end as result
          from source s
          left join store h on h.device_id = s.device_id and h.bucket = s.bucket
          group by s.device_id, s.bucket, h.checksum
        ),
        days as materialized (
          select b.day,
            count(*) filter (where b.result = 'kept') as kept,
            sum(b.rows) - count(*) filter (where b.result <> 'foreign') as duplicate,
            count(*) filter (where b.result = 'missing') as missing,
            count(*) filter (where b.result = 'changed') as changed,
            count(*) filter (where b.result = 'foreign') as foreign_rows,
            sum(b.source_checksum) filter (where b.result <> 'foreign') as source_checksum,
            sum(b.store_checksum) filter (where b.result in ('kept', 'changed')) as store_checksum
          from buckets b
          group by b.day
        )
        update fleet.import_days d
        set rows_kept = coalesce(f.kept, 0), rows_duplicate = coalesce(f.duplicate, 0), rows_missing = coalesce(f.missing, 0),
          -- An imported row whose ts or received_at was changed looks as if it came from the new server. Such rows are found
          -- because fewer rows are left than were stored.
          rows_changed = coalesce(f.changed + greatest(least(f.foreign_rows, d.rows_stored - f.kept), 0), 0),
          source_checksum = coalesce(f.source_checksum, 0), store_checksum = coalesce(f.store_checksum, 0),
          checked_at = clock_timestamp()
        from fleet.import_days w
        left join days f on f.day = w.day
        where d.source = ($1).source and w.source = d.source and w.day = d.day
          and d.day >= $2::date and d.day < $3::date and d.checked_at is null
      $query$,
      fleet.checksum_expression('fleet.device_heartbeats')
    )
    using a, v_first::timestamptz, (v_last + 1)::timestamptz;
    update fleet.imports f
    set step_done = f.step_done + v_rows, step_rows = f.step_rows + v_rows
    where f.source = a.source;
    return true;
  end if;

  select sum(d.rows_kept), count(*) filter (
    where d.rows_missing > 0 or d.rows_changed > 0 or d.source_checksum <> d.store_checksum
  )
  into v_rows, v_bad
  from fleet.import_days d
  where d.source = a.source and d.checked_at is not null;
  update fleet.imports f
  set state = case when v_bad = 0 then 'verified' else 'moved' end, verified_at = clock_timestamp()
  where f.source = a.source;
  perform fleet.record_event(
    'import.verified', p_is_ok => v_bad = 0, p_rows => v_rows,
    p_detail => format(
      '%s: %s', a.source, case when v_bad = 0 then 'no difference' else format('differences on %s days', v_bad) end
    )
  );
  return false;
end
$$;

comment on function fleet.verify_days(fleet.imports, integer) is
  'Compares the next days of a table that is being imported with the store, row by row and by a checksum over all rows; after '
  'the last day, sets the state to verified or, if there are differences, to moved. False when nothing is left to compare.';
