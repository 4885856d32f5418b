-- Each table has its own trigger function: it is compiled once, and dropping it also drops the trigger, which otherwise only
-- the owner of the table may do.
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
  execute format(
    $function$
      create or replace function fleet.%1$I() returns trigger
      language plpgsql
      volatile
      security definer
      set search_path = pg_catalog, pg_temp
      set timezone = 'UTC'
      set datestyle = 'ISO, MDY'
      set lock_timeout = '300ms'
      set jit = off
      as $forward$
      begin
        begin
          insert into fleet.device_heartbeats
          select (q.beat).*
          from (%2$s) q
          where q.reason is null
          order by (q.beat).device_id, (q.beat).ts
          on conflict do nothing;
        exception when others then
          perform fleet.record_forward_failure(%3$L, sqlerrm);
        end;
        return null;
      end
      $forward$
    $function$,
    'forward_' || a.relid, fleet.source_query(a, 'new_rows r', 'null::tid'), a.source
  );
  execute format(
    'comment on function fleet.%I() is %L', 'forward_' || a.relid,
    format('Trigger on %s: forwards new rows to the store until the import is confirmed or abandoned.', a.source)
  );
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
