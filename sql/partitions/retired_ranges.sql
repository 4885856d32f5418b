create or replace function fleet.retired_ranges() returns tstzmultirange
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(range_agg(tstzrange(p.range_start, p.range_end)), '{}')
  from fleet.hb_partitions p
  where p.state not in ('active', 'restored') and not (p.state = 'dropped' and p.row_count = 0);
$$;

comment on function fleet.retired_ranges() is
  'The ranges of the partitions that were retired with rows. fleet.request_restore() brings them back; no new partitions are '
  'created for them.';
