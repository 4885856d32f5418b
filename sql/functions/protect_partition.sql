-- A restored day counts as unproven again: rows may have been added while it was attached.
create or replace function fleet.protect_partition() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into fleet_guard.partitions as g (partition_name, relid, relid_seal, is_proven)
  values (new.partition_name, new.relid, new.relid_seal, new.is_proven_empty or new.state in ('archived', 'dropped'))
  on conflict (partition_name) do update
    set relid = excluded.relid, relid_seal = excluded.relid_seal, is_proven = excluded.is_proven
    where (g.relid, g.relid_seal, g.is_proven) is distinct from (excluded.relid, excluded.relid_seal, excluded.is_proven);
  return null;
end
$$;

comment on function fleet.protect_partition() is
  'Trigger on fleet.hb_partitions: tells the guard in fleet_guard which partitions may be dropped.';
