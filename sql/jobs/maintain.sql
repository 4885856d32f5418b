create or replace procedure fleet.maintain(inout p_run_id bigint default null, p_now timestamptz default now())
language plpgsql
as $$
declare
  v_nightly bigint;
begin
  p_run_id := fleet.begin_run('maintain', null, p_now);
  commit;
  call fleet.run_planned_steps(p_run_id);
  perform fleet.end_run(p_run_id);
  commit;
  -- Postgres or pg_cron was down at 03:00.
  if fleet.is_night_missed(p_now) then
    call fleet.nightly(v_nightly, null, p_now);
  end if;
end
$$;

comment on procedure fleet.maintain(bigint, timestamptz) is
  'Creates partitions ahead, opens settled days if max_late was raised, recounts the availability of devices with late '
  'heartbeats, and runs fleet.nightly() if a night was missed. Run hourly by pg_cron; safe at any time. '
  'Example: call fleet.maintain();';
