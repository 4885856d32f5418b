create or replace procedure fleet.nightly(
  inout p_run_id bigint default null,
  p_retention interval default null,
  p_now timestamptz default now()
)
language plpgsql
as $$
begin
  p_run_id := fleet.begin_run('nightly', p_retention, p_now);
  commit;
  call fleet.run_planned_steps(p_run_id);
  perform fleet.end_run(p_run_id);
end
$$;

comment on procedure fleet.nightly(bigint, interval, timestamptz) is
  'The nightly maintenance, each step in its own transaction: creates partitions ahead, measures sizes, rolls up availability, '
  'retires partitions past the retention, sets autovacuum by age, prunes, wakes the archiver, and settles days for which no '
  'heartbeat can come any more. Returns its run_id for fleet.run_steps(). For a dry run: select * from fleet.nightly_plan(). '
  'Example: call fleet.nightly();';
