create or replace function fleet.get_partition(p_partition text) returns fleet.hb_partitions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  select * into v_partition from fleet.hb_partitions where partition_name = p_partition for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no partition %s', coalesce(p_partition, 'null')),
      hint = 'The names are in: select partition_name, range_start, state from fleet.partition_health;';
  end if;
  return v_partition;
end
$$;

comment on function fleet.get_partition(text) is
  'The row of fleet.hb_partitions, locked; raises an error with a hint if there is none.';
