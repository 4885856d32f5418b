create or replace function fleet.start_forwarding(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not a.forwards then
    return fleet.stop_forwarding(a);
  end if;
  perform fleet.create_forward_function(a);
  -- Waits for running writers and blocks new ones until the commit. Then each row either is in the table already or is forwarded.
  execute format(
    'create or replace trigger fleet_forward after insert on %s referencing new table as new_rows '
      'for each statement execute function fleet.%I()',
    a.source, 'forward_' || a.relid
  );
  return false;
end
$$;

comment on function fleet.start_forwarding(fleet.imports) is
  'Creates a trigger on a table that is being imported, which forwards new rows to the store.';
