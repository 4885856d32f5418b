-- A procedure that commits can have neither SET nor SECURITY DEFINER, so the function that it calls has them.
create or replace procedure fleet.run_erasures(p_budget interval default '4 minutes')
language plpgsql
as $$
declare
  v_until timestamptz := pg_catalog.clock_timestamp() + p_budget;
  v_outcome text;
begin
  loop
    v_outcome := fleet.erase_step();
    commit;
    exit when v_outcome = 'over' or pg_catalog.clock_timestamp() > v_until;
  end loop;
end
$$;

comment on procedure fleet.run_erasures(interval) is
  'Deletes the heartbeats of erased devices from the partitions that are online, one partition a transaction, and ends the '
  'erasures for which nothing is left. May be stopped at any time; the next run goes on. Run by pg_cron every five minutes. '
  'Example: call fleet.run_erasures();';
