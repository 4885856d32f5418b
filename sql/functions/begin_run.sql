-- The steps are planned here, with the owner's rights, and a caller can only have the next one done: nobody who may run a
-- night can have a step done with a partition, a day or a time of their own choice.
create or replace function fleet.begin_run(p_kind text, p_retention interval default null, p_now timestamptz default now())
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint := hashtextextended('fleet.maintenance', 0);
  v_run_id bigint;
  v_holder integer;
  v_steps constant text[] := case p_kind
    -- Premake comes first and alone: ingest depends on it, on nothing below. plan_ steps are replaced by one for each day or
    -- partition that they find; days whose heartbeats are about to leave are rolled up before that.
    when 'nightly' then array[
      'premake', 'refresh_sizes', 'plan_roll_up', 'plan_retire', 'set_temperatures', 'schedule_vacuum', 'prune', 'note_storage',
      'retry_failed_archives', 'wake_archiver'
    ]
    when 'maintain' then array['premake', 'plan_rebuild']
  end;
begin
  if v_steps is null then
    raise exception using
      errcode = 'FL422',
      message = format('there is no maintenance of the kind %s', coalesce(p_kind, 'null')),
      hint = 'The kinds are nightly and maintain.';
  end if;
  if not exists (
    select from pg_trigger where tgrelid = to_regclass('fleet.hb_partitions') and tgname = 'hb_partitions_protect'
  ) then
    raise exception using
      errcode = 'FL002',
      message = 'fleet.hb_partitions has no trigger hb_partitions_protect: a dump is being restored, or was not restored to its end',
      hint = 'Maintenance waits for the end of the restore. If there is none under way: restore again, into an empty database.';
  end if;
  perform fleet.not_in_future(p_now);
  if p_retention < interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('retention %s is less than 1 day: days that devices still send would be retired', p_retention),
      hint = 'Example: call fleet.nightly(null, ''60 days''); see first: select * from fleet.nightly_plan(''60 days'');';
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
  -- Those of a run that was killed; this one plans for itself.
  delete from fleet.planned_steps;
  insert into fleet.planned_steps (run_id, position, step, retention, as_of, pid)
  select v_run_id, s.position * 1000000, s.step, p_retention, p_now, pg_backend_pid()
  from unnest(v_steps) with ordinality as s (step, position);
  perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => session_user::text);
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text, interval, timestamptz) is
  'Begins a run of maintenance (nightly or maintain): takes its lock, or says who has it, numbers the run and plans its steps.';
