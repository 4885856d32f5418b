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
  'The way back: takes the trigger away and writes the heartbeats that the store received since the adoption began, and the table lacks, into the table. What was moved stays in the store. Called again, it writes back what came since. Example: call fleet.abandon_import(''public.device_heartbeats'');';
