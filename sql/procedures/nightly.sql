create or replace procedure fleet.nightly(
  inout p_run_id bigint default null,
  p_retention interval default null,
  p_now timestamptz default now()
)
language plpgsql
as $$
declare
  v_failed integer := 0;
  v_partition text;
  v_rollup record;
begin
  p_run_id := fleet.begin_run('nightly');
  commit;
  -- Premake comes first and alone: ingest depends on it, on nothing below.
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'refresh_sizes', null, p_now, v_failed);
  -- Days of which the heartbeats are going to leave come first.
  for v_rollup in
    select r.day, r.partition_name
    from fleet.rollup_plan(p_now) r
    where r.action = 'roll_up' and r.state in ('active', 'restored')
    order by r.day
  loop
    call fleet.run_step(p_run_id, 'roll_up', v_rollup.partition_name, p_now, v_failed, v_rollup.day);
  end loop;
  foreach v_partition in array array(
    select r.partition_name
    from fleet.retention_plan(p_retention, p_now) r
    where r.action = 'retire'
    order by r.range_start
  ) loop
    call fleet.run_step(p_run_id, 'retire', v_partition, p_now, v_failed);
  end loop;
  call fleet.run_step(p_run_id, 'set_temperatures', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'schedule_vacuum', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'prune', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'note_storage', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'retry_failed_archives', null, p_now, v_failed);
  call fleet.run_step(p_run_id, 'wake_archiver', null, p_now, v_failed);
  perform fleet.end_run(p_run_id, 'nightly', v_failed);
end
$$;

comment on procedure fleet.nightly(bigint, interval, timestamptz) is
  'The night''s work, each step in its own transaction: premake, count, roll up availability, retire what is past the retention, set autovacuum by age, prune, wake the archiver. Answers its run_id for fleet.run_steps(). See first: select * from fleet.nightly_plan(). Example: call fleet.nightly();';
