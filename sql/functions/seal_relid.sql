create or replace function fleet.seal_relid() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seal text := fleet_guard.seal(new.relid);
begin
  -- Given on sight only. One that was given before stays as long as it fits, whatever the table is called by now.
  if new.relid_seal is distinct from v_seal then
    new.relid_seal := case
      when exists (
        select from pg_class c
        where c.oid = new.relid and c.relkind = 'r' and c.relname = new.partition_name
          and c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached'))
      ) then v_seal
    end;
  end if;
  return new;
end
$$;

comment on function fleet.seal_relid() is
  'Trigger on fleet.hb_partitions: notes in relid_seal that relid was recorded in this database, while its table had the name of the partition.';
