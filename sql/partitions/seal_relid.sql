create or replace function fleet.seal_relid() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seal text := fleet_guard.seal(new.relid);
begin
  -- A new seal requires that the table has the partition's name. A seal that fits is kept, even if the table was renamed later.
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
  'Trigger on fleet.hb_partitions: sets relid_seal if relid is recorded in this database while its table has the name of the '
  'partition.';
