-- A job is late from the later of its last success and the start of Postgres: while that was stopped, nothing ran.
create or replace view fleet.job_health as
select h.jobname, h.schedule,
  case
    when h.is_active is null then 'missing'
    when not h.is_active then 'disabled'
    when h.last_start is null then 'waiting'
    when h.last_status = 'failed' then 'failed'
    when h.last_success is null or now() - greatest(h.last_success, fleet.postgres_started_at()) > case
      when h.schedule like '* %' then interval '5 minutes'
      when h.schedule like '*/10 %' then interval '25 minutes'
      when split_part(h.schedule, ' ', 2) = '*' then interval '125 minutes'
      else interval '25 hours'
    end then 'late'
    else 'ok'
  end as status,
  h.last_start, h.last_status, h.last_message, h.last_success
from fleet.job_history() h
order by h.jobname;

comment on view fleet.job_health is
  'The pg_cron jobs of the store: ok, waiting (never run yet), late, failed, disabled or missing. Example: select * from fleet.job_health where status <> ''ok'';';
