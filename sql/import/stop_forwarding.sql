create or replace function fleet.stop_forwarding(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
begin
  execute format('drop function if exists fleet.%I() cascade', 'forward_' || a.relid);
  return false;
end
$$;

comment on function fleet.stop_forwarding(fleet.imports) is 'Removes the trigger of an import, with its function.';
