create or replace procedure fleet.maintain(inout p_run_id bigint default null, p_now timestamptz default now())
language plpgsql
as $$
declare
  v_failed integer := 0;
  v_nightly bigint;
  v_rollup record;
begin
  p_run_id := fleet.begin_run('maintain');
  commit;
  call fleet.run_step(p_run_id, 'premake', null, p_now, v_failed);
  for v_rollup in
    select r.day, r.partition_name
    from fleet.rollup_plan(p_now) r
    where r.action = 'rebuild' and r.state in ('active', 'restored')
    order by r.day
  loop
    call fleet.run_step(p_run_id, 'rebuild', v_rollup.partition_name, p_now, v_failed, v_rollup.day);
  end loop;
  perform fleet.end_run(p_run_id, 'maintain', v_failed);
  commit;
  -- Postgres or pg_cron was down at three.
  if fleet.is_night_missed(p_now) then
    call fleet.nightly(v_nightly, null, p_now);
  end if;
end
$$;

comment on procedure fleet.maintain(bigint, timestamptz) is
  'Makes the partitions ahead, counts the availability of devices with late heartbeats anew, and makes up for a night that was missed. Run hourly by pg_cron; safe at any time. Example: call fleet.maintain();';
