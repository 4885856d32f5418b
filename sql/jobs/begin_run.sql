-- The steps are planned here, with the owner's rights, and a caller can only run the next one. So a role that may start a
-- night cannot choose the partition, the day or the time of a step.
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
    -- Premake comes first and in its own transaction, because ingest depends on it. Each plan_ step is replaced by one step for
    -- each day or partition that it finds. Days are rolled up before their heartbeats are retired. Settling may take minutes, so the
    -- archiver is woken before it; what VACUUM has to do is known after it.
    when 'nightly' then array[
      'premake', 'refresh_sizes', 'plan_roll_up', 'plan_retire', 'tune_autovacuum', 'prune', 'note_storage',
      'retry_failed_archives', 'wake_archiver', 'plan_settle', 'schedule_vacuum'
    ]
    when 'maintain' then array['premake', 'plan_unsettle', 'plan_rebuild']
  end;
begin
  if v_steps is null then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a kind of maintenance', coalesce(p_kind, 'null')),
      hint = 'The kinds are nightly and maintain.';
  end if;
  if not exists (
    select from pg_trigger where tgrelid = to_regclass('fleet.hb_partitions') and tgname = 'hb_partitions_protect'
  ) then
    raise exception using
      errcode = 'FL002',
      message = 'fleet.hb_partitions has no trigger hb_partitions_protect: a restore of a dump is running or was not completed',
      hint = 'Wait for the restore to finish. If none is running, restore the dump again into an empty database.';
  end if;
  perform fleet.not_in_future(p_now);
  if not pg_has_role(session_user, 'fleet_owner', 'member') then
    p_now := now();  -- other roles cannot choose a time in the past either
  end if;
  if p_retention < interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('retention %s is less than 1 day: days to which devices still send would be retired', p_retention),
      hint = 'First see what would happen: select * from fleet.nightly_plan(''60 days''); then: '
        'call fleet.nightly(null, ''60 days'');';
  end if;
  -- A session lock, because it has to outlive the transactions of the run.
  if not pg_try_advisory_lock(v_key) then
    v_holder := (select h from fleet.lock_holders('maintenance') h);
    raise exception using
      errcode = 'FL003',
      message = format('maintenance is already running in backend %s', v_holder),
      hint = 'Wait for it. If it is stuck: select * from fleet.force_unlock(''maintenance''); the next run continues from there.';
  end if;
  begin
    -- Before any step that could act on the wrong table.
    perform fleet.relink_tables();
    v_run_id := nextval('fleet.run_id_seq');
    -- A run that was killed may have left steps; this run makes its own plan.
    delete from fleet.planned_steps;
    insert into fleet.planned_steps (run_id, position, step, retention, as_of, pid)
    select v_run_id, s.position * 1000000, s.step, p_retention, p_now, pg_backend_pid()
    from unnest(v_steps) with ordinality as s (step, position);
    perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => (fleet.current_actor()).actor);
    if not fleet.is_scheduled_run() then
      perform fleet.audit(
        p_kind || '.started', 'run:' || v_run_id,
        p_after => case when p_retention is not null then jsonb_build_object('retention', p_retention) end
      );
    end if;
  exception when others or query_canceled then
    -- The session may stay in a pool and would keep the lock.
    perform pg_advisory_unlock(v_key);
    raise;
  end;
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text, interval, timestamptz) is
  'Begins a run of maintenance (nightly or maintain): takes the lock, or names the session that holds it, numbers the run and '
  'plans its steps.';
