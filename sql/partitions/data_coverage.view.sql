create or replace view fleet.data_coverage as
select d.day,
  case
    when p.in_database and p.in_archive then 'both'
    when p.in_database then 'online'
    when p.in_archive then 'archived'
    else 'missing'
  end as "where",
  p.row_count
from (
  -- Computed without a time zone: in the session's zone a day may begin at another hour, and two days a year are longer or
  -- shorter.
  select generate_series(
    (select min(range_start) from fleet.hb_partitions) at time zone 'UTC', date_trunc('day', now() at time zone 'UTC'),
    interval '1 day'
  )::date as day
) d
left join lateral (
  select bool_or(h.relid is not null) as in_database,
    bool_or(h.proven_at is not null and h.archive_url is not null) as in_archive,
    sum(h.row_count) as row_count
  from fleet.hb_partitions h
  where h.range_start <= d.day::timestamp at time zone 'UTC' and h.range_end > d.day::timestamp at time zone 'UTC'
) p on true
order by d.day desc;

comment on view fleet.data_coverage is
  'Where the heartbeats of each UTC day are: online (in the database), archived, both or missing. row_count is that of the '
  'day''s partition. Example: select * from fleet.data_coverage where "where" = ''missing'';';
