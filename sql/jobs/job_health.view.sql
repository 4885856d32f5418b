-- The age of a job counts from its last success or from the start of Postgres, whichever is later: nothing runs while it is down.
create or replace view fleet.job_health as
select h.jobname, h.schedule,
  case
    -- Days are settled and erased at any time; the next fleet.nightly() tells pg_cron which of them to freeze.
    when h.is_active is null and h.jobname = 'fleet-freeze' then 'waiting'
    when h.is_active is null then 'missing'
    when not h.is_active then 'disabled'
    when h.last_start is null then 'waiting'
    when h.last_status = 'failed' then 'failed'
    when h.last_success is null or now() - greatest(h.last_success, fleet.postgres_started_at()) > h.max_age then 'late'
    else 'ok'
  end as status,
  h.last_start, h.last_status, h.last_message, h.last_success
from fleet.job_history() h
order by h.jobname;

comment on view fleet.job_health is
  'The jobs of the store, which pg_cron or npm run tick runs: ok, waiting (has not run yet), late, failed, disabled or missing. Example: select * from '
  'fleet.job_health where status <> ''ok'';';
