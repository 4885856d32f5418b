create or replace function fleet.refresh_sizes(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition record;
  v_rows bigint;
  v_count integer := 0;
begin
  update fleet.hb_partitions p
  set bytes_size = s.bytes
  from (
    select q.partition_name, fleet.bytes_of(q) as bytes
    from fleet.hb_partitions q
    where q.state in ('active', 'restored') and q.relid is not null
  ) s
  where s.partition_name = p.partition_name and p.bytes_size is distinct from s.bytes;

  -- An exact count once the day is over. Not repeated when the day can no longer grow, nor if the count is that of an archive.
  for v_partition in
    select p.partition_name
    from fleet.hb_partitions p
    where p.state = 'active' and p.relid is not null and p.range_end <= p_now and p.archive_url is null
      and (p.row_count is null or p.range_end > p_now - (select max_late from fleet.settings))
    order by p.range_start
  loop
    execute format('select count(*) from fleet.%I', v_partition.partition_name) into v_rows;
    update fleet.hb_partitions
    set row_count = v_rows
    where partition_name = v_partition.partition_name and row_count is distinct from v_rows;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.refresh_sizes(timestamptz) is
  'Refreshes the sizes of attached partitions, and the row counts of past ones that can still change; returns how many it '
  'counted. Run by fleet.nightly().';
