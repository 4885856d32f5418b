create or replace function fleet.seal_source() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.relid_seal := coalesce(new.relid_seal, fleet_guard.seal(new.relid));
  return new;
end
$$;

comment on function fleet.seal_source() is
  'Trigger on fleet.imports: sets relid_seal, which marks relid as recorded in this database.';
