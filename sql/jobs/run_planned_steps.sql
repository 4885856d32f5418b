-- A procedure that commits can have neither SET nor SECURITY DEFINER, so the functions that it calls have them.
create or replace procedure fleet.run_planned_steps(p_run_id bigint)
language plpgsql
as $$
declare
  v_outcome text;
  v_attempt integer := 1;
begin
  loop
    v_outcome := fleet.run_next_step(p_run_id, v_attempt);
    commit;
    exit when v_outcome = 'over';
    if v_outcome = 'busy' then
      -- Usually a long query over the whole parent holds the lock. Wait a moment outside of a transaction and try again.
      perform pg_catalog.pg_sleep(0.2 * v_attempt);
      commit;
      v_attempt := v_attempt + 1;
    else
      v_attempt := 1;
    end if;
  end loop;
end
$$;

comment on procedure fleet.run_planned_steps(bigint) is
  'Runs the steps of a maintenance run, each in its own transaction. A step is retried while locks are busy and recorded in '
  'fleet.events, and its failure does not stop the others.';
