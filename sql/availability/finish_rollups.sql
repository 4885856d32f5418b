-- Nobody can write to a retired partition, so what is counted here is final.
create or replace function fleet.finish_rollups(p_partition text) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now timestamptz;
  v_due record;
  v_count integer := 0;
begin
  select greatest(now(), p.range_end) into v_now
  from fleet.hb_partitions p
  where p.partition_name = p_partition;
  for v_due in
    select r.day, r.action
    from fleet.rollup_plan(v_now) r
    where r.partition_name = p_partition
    order by r.day
  loop
    v_count := v_count + fleet.roll_up_day(v_due.day, v_now, v_due.action = 'rebuild');
  end loop;
  return v_count;
end
$$;

comment on function fleet.finish_rollups(text) is
  'Rolls up the days of a retired partition that are not rolled up yet, and counts its late arrivals. Does nothing if '
  'everything is up to date. Called before the partition is exported, and before it is dropped.';
