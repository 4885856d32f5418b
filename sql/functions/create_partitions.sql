create or replace function fleet.create_partitions(p_from date, p_to date) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
begin
  if p_from is null or p_to is null or p_from > p_to or p_to - p_from > 4000 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot create partitions from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a first and a last day, in order, at most 4000 days apart: select fleet.create_partitions(''2026-08-01'', ''2026-08-31'').';
  end if;

  perform fleet.sync_partitions();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));

  perform fleet.ensure_partitions(array(
    select distinct date_trunc(case s.cadence when 'monthly' then 'month' else 'day' end, d.day) as range_start
    from generate_series(p_from::timestamptz, p_to::timestamptz, interval '1 day') as d (day)
    cross join fleet.settings s
    where not exists (
      select from fleet.attached_partitions() a
      where a.range_start < d.day + interval '1 day' and a.range_end > d.day
    )
    -- A retired day is not made anew beside its archive: fleet.request_restore() brings it back.
    and not exists (
      select from fleet.hb_partitions p
      where p.state not in ('active', 'restored')
        and not (p.state = 'dropped' and p.row_count = 0)
        and p.range_start < d.day + interval '1 day' and p.range_end > d.day
    )
    order by range_start
  ));

  perform fleet.sync_partitions();
  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Makes the partitions that are missing between two days, both included, and returns their names. Retired days are left to fleet.request_restore(). Example: select fleet.create_partitions(current_date, current_date + 30);';
