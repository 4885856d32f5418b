create or replace function fleet.begin_run(p_kind text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint := hashtextextended('fleet.maintenance', 0);
  v_run_id bigint;
  v_holder integer;
begin
  -- A lock of the session: it has to outlive the transactions of the run.
  if not pg_try_advisory_lock(v_key) then
    v_holder := (select h from fleet.lock_holders('maintenance') h);
    raise exception using
      errcode = 'FL003',
      message = format('maintenance is running already, in backend %s', v_holder),
      hint = 'Wait for it. If it is stuck: select * from fleet.force_unlock(''maintenance''); the next run goes on where it ended.';
  end if;
  v_run_id := nextval('fleet.run_id_seq');
  perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => session_user::text);
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text) is
  'Begins a run of maintenance: takes its lock, or says who has it, and numbers the run.';
