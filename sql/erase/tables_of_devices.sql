-- From the catalog, so that a table that somebody adds is found, too. The tables of erasures themselves have to know the device.
create or replace function fleet.tables_of_devices() returns setof regclass
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.oid::regclass
  from pg_class c
  join pg_attribute a on a.attrelid = c.oid and a.attname = 'device_id' and a.attnum > 0 and not a.attisdropped
  where c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached'))
    and c.relkind = 'r'
    and c.oid <> 'fleet.erasures'::regclass
  order by c.oid::regclass::text;
$$;

comment on function fleet.tables_of_devices() is
  'Every table that holds rows of devices, from the catalog: those with a column device_id, without fleet.erasures. An erasure '
  'ends only when none of them has a row of its device.';
