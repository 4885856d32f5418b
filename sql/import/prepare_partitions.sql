create or replace function fleet.prepare_partitions(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  c_days_at_once constant integer := 5;  -- creating one locks the parent for about 10 ms, and heartbeats wait that long
  c_most_empty constant integer := 400;
  v_first date;
  v_last date;
  v_missing date;
  v_days bigint;
  v_usual date;
  v_settled text;
begin
  select min(d.day), max(d.day), count(*) into v_first, v_last, v_days
  from fleet.import_days d
  where d.source = a.source and d.rows_found > 0;
  if v_first is null then
    return false;
  end if;

  if not a.is_oldest_given and v_last - v_first + 1 - v_days > c_most_empty then
    -- The day after the longest gap.
    select g.day into v_usual
    from (
      select d.day, d.day - lag(d.day) over (order by d.day) as gap
      from fleet.import_days d
      where d.source = a.source and d.rows_found > 0
    ) g
    order by g.gap desc nulls last
    limit 1;
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s has heartbeats from %s to %s but none on %s days in between: some clocks were wrong', a.source, v_first, v_last,
        v_last - v_first + 1 - v_days
      ),
      hint = format(
        'Give the oldest time to import; older rows are refused: call fleet.import_table(%L, p_oldest => %L); '
          'if all of them are right, use %s.',
        a.source, v_usual, v_first
      );
  end if;

  select m.day into v_missing
  from (
    select d.day::date as day
    from generate_series(v_first, v_last, interval '1 day') as d (day)
    except
    select generate_series(p.range_start, p.range_end - interval '1 day', interval '1 day')::date
    from fleet.attached_partitions() p
  ) m
  cross join fleet.retired_ranges() as r (retired)
  where not r.retired @> m.day::timestamptz
  order by m.day
  limit 1;
  if v_missing is null then
    -- The night does not settle them again before the import is confirmed; see fleet.import_holds().
    select p.partition_name into v_settled
    from fleet.hb_partitions p
    where p.settled_at is not null and p.state in ('active', 'restored')
      and exists (
        select from fleet.import_days d
        where d.source = a.source and d.rows_found > 0 and d.day >= p.range_start::date and d.day < p.range_end::date
      )
    order by p.range_start
    limit 1;
    if v_settled is null then
      return false;
    end if;
    perform fleet.unsettle_table(v_settled);
    return true;
  end if;
  perform fleet.add_partitions(v_missing, least(v_missing + c_days_at_once - 1, v_last));
  update fleet.imports f
  set step_done = v_missing - v_first
  where f.source = a.source;
  return true;
end
$$;

comment on function fleet.prepare_partitions(fleet.imports) is
  'Creates the next partitions for the days of a table that is being imported, from its first day to its last, and opens settled ones; '
  'false when nothing is left to do. It creates none for days in the archive, which fleet.request_restore() brings back.';
