create or replace procedure fleet.abandon_import(p_source regclass, inout p_state text default null)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;
  v_source := fleet.begin_abandoning(p_source);
  commit;
  call fleet.run_import(v_source, 5000, '0', p_state);
end
$$;

comment on procedure fleet.abandon_import(regclass, text) is
  'Abandons the import of a table: removes the trigger, and writes back into the table the heartbeats that the store has '
  'received since the import began and that the table does not have. What was imported stays in the store. Another call '
  'writes back what has arrived since. Example: call fleet.abandon_import(''public.device_heartbeats'');';
