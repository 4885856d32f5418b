create or replace function fleet.find_day_table(p_day date) returns regclass
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.oid::regclass
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where p.range_start <= p_day and p.range_end > p_day;
$$;

comment on function fleet.find_day_table(date) is
  'The table that has the heartbeats of this day, attached or retired; null if there is none.';
