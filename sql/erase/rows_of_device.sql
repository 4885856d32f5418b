create or replace function fleet.rows_of_device(p_table regclass, p_device_id bigint) returns setof integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute format('select 1 from only %s where device_id = $1', p_table) using p_device_id;
end
$$;

comment on function fleet.rows_of_device(regclass, bigint) is
  'One row for each row that a table has of a device. Used by fleet.record_erasure().';
