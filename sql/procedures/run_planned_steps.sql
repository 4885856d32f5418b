-- A procedure that commits can have neither SET nor SECURITY DEFINER: what needs them is in the functions it calls.
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
      -- A long query over the whole parent is the usual cause: wait a moment, in no transaction, and try again.
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
  'Does the steps of a run of maintenance, each in a transaction of its own: retried while locks are busy, recorded in fleet.events, and never the end of the others.';
