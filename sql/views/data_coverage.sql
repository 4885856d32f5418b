create or replace view fleet.data_coverage as
select d.day::date as day,
  case
    when p.in_database and p.in_archive then 'both'
    when p.in_database then 'online'
    when p.in_archive then 'archived'
    else 'missing'
  end as "where",
  p.row_count
from (
  select generate_series(
    (select min(range_start) from fleet.hb_partitions), date_trunc('day', now(), 'UTC'), interval '1 day'
  ) as day
) d
left join lateral (
  select bool_or(h.relid is not null) as in_database,
    bool_or(h.proven_at is not null and h.archive_url is not null) as in_archive,
    sum(h.row_count) as row_count
  from fleet.hb_partitions h
  where h.range_start <= d.day and h.range_end > d.day
) p on true
order by d.day desc;

comment on view fleet.data_coverage is
  'Where the heartbeats of each day are: online (in the database), archived, both or missing. row_count is that of the day''s partition. Example: select * from fleet.data_coverage where "where" = ''missing'';';
