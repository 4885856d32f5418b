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
  if not exists (
    select from pg_trigger where tgrelid = to_regclass('fleet.hb_partitions') and tgname = 'hb_partitions_protect'
  ) then
    raise exception using
      errcode = 'FL002',
      message = 'fleet.hb_partitions has no trigger hb_partitions_protect: a dump is being restored, or was not restored to its end',
      hint = 'Maintenance waits for the end of the restore. If there is none under way: restore again, into an empty database.';
  end if;
  -- A lock of the session: it has to outlive the transactions of the run.
  if not pg_try_advisory_lock(v_key) then
    v_holder := (select h from fleet.lock_holders('maintenance') h);
    raise exception using
      errcode = 'FL003',
      message = format('maintenance is running already, in backend %s', v_holder),
      hint = 'Wait for it. If it is stuck: select * from fleet.force_unlock(''maintenance''); the next run goes on where it ended.';
  end if;
  -- Before any step that could act on it.
  perform fleet.relink_tables();
  v_run_id := nextval('fleet.run_id_seq');
  perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => session_user::text);
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text) is
  'Begins a run of maintenance: takes its lock, or says who has it, and numbers the run.';
