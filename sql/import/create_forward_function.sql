-- Each table has its own trigger function: it is compiled once, and dropping it also drops the trigger, which otherwise only
-- the owner of the table may do. It names every column of fleet.device_heartbeats, so it is made again when they change.
create or replace function fleet.create_forward_function(a fleet.imports) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
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
end
$$;

comment on function fleet.create_forward_function(fleet.imports) is
  'Creates the function of the trigger that forwards new rows of a table that is being imported, or creates it again for the '
  'columns that fleet.device_heartbeats has now.';
