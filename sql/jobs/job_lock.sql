-- The two jobs of maintenance take one lock. If they had two here, one tick would begin the second while another does the first,
-- and it would fail.
create or replace function fleet.job_lock(p_jobname text) returns bigint
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended(
    'fleet.job.' || case when p_jobname in ('fleet-maintain', 'fleet-nightly') then 'maintenance' else p_jobname end, 0
  );
$$;

comment on function fleet.job_lock(text) is
  'The advisory lock of the session that runs a job for npm run tick: of fleet.begin_job() and fleet.end_job().';
