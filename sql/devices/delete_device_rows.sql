create or replace function fleet.delete_device_rows(p_device_ids bigint[]) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table regclass;
  v_rows bigint;
  v_total bigint := 0;
begin
  -- A day that is rolled up knows how many devices it counted. It must not be rolled up again because one of them is gone.
  with gone as (
    delete from fleet.device_availability_daily a
    where a.device_id = any (p_device_ids)
    returning a.day
  ),
  fewer as (
    update fleet.rolled_up_days r
    set devices = r.devices - g.devices
    from (select o.day, count(*) as devices from gone o group by o.day) g
    where g.day = r.day
  )
  select count(*) into v_total from gone;
  -- What else has rows of devices. Heartbeats are deleted by partition.
  for v_table in
    select t
    from fleet.tables_of_devices() t
    join pg_class c on c.oid = t
    where c.relnamespace = 'fleet'::regnamespace and not c.relispartition and t <> 'fleet.devices'::regclass
      and t <> 'fleet.device_availability_daily'::regclass
      and c.relname not like 'device\_heartbeats\_%' and c.relname not like 'restoring\_%' and c.relname not like 'erasing\_%'
      and has_table_privilege(t, 'delete')
  loop
    execute format('delete from %s where device_id = any ($1)', v_table) using p_device_ids;
    get diagnostics v_rows = row_count;
    v_total := v_total + v_rows;
  end loop;
  return v_total;
end
$$;

comment on function fleet.delete_device_rows(bigint[]) is
  'Deletes what is stored of devices except their heartbeats: last status, quarantine, commands and their dispatch log, rollups, '
  'late arrivals, unreadable fields, and the rows of any other table with a column device_id. Returns how many rows. Called when '
  'a device is deleted.';
