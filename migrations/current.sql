-- A run of maintenance does the steps that the owner planned for it, and nobody's functions take a time that has not come.
create table if not exists fleet.planned_steps (
  run_id bigint not null,
  position bigint not null,
  step text not null,
  partition_name text,
  day date,
  retention interval,
  as_of timestamptz not null,
  pid integer not null,
  constraint planned_steps_pkey primary key (run_id, position)
);
comment on table fleet.planned_steps is
  'What a run of maintenance has left to do; empty between runs. Only fleet.begin_run() and fleet.run_next_step() write here.';
comment on column fleet.planned_steps.run_id is 'The run, as in fleet.events.';
comment on column fleet.planned_steps.position is 'The order of the steps.';
comment on column fleet.planned_steps.step is 'The step; one that begins with plan_ is replaced by a step for each day or partition that it finds.';
comment on column fleet.planned_steps.partition_name is 'The partition that the step is about, if it is about one.';
comment on column fleet.planned_steps.day is 'The UTC day that the step is about, if it is about one.';
comment on column fleet.planned_steps.retention is 'The retention that the run was asked for; null: that of fleet.settings.';
comment on column fleet.planned_steps.as_of is 'The time that counts as now for the run.';
comment on column fleet.planned_steps.pid is 'The backend that runs them; no other one can.';

drop procedure if exists fleet.run_step(bigint, text, text, timestamptz, integer, date);
drop function if exists fleet.begin_run(text);
drop function if exists fleet.end_run(bigint, text, integer);
--!include functions/not_in_future.sql
--!include functions/availability_of_day.sql
--!include functions/begin_run.sql
--!include functions/check.sql
--!include functions/check_adoption.sql
--!include functions/check_archive.sql
--!include functions/check_ingest.sql
--!include functions/check_partitions.sql
--!include functions/check_scheduler.sql
--!include functions/check_sessions.sql
--!include functions/check_silence.sql
--!include functions/check_storage.sql
--!include functions/device_availability.sql
--!include functions/device_day.sql
--!include functions/end_run.sql
--!include functions/ingest.sql
--!include functions/is_night_missed.sql
--!include functions/nightly_plan.sql
--!include functions/retention_plan.sql
--!include functions/roll_up.sql
--!include functions/rollup_plan.sql
--!include functions/run_next_step.sql
--!include functions/set_cadence.sql
--!include functions/silence_at.sql
--!include procedures/maintain.sql
--!include procedures/nightly.sql
--!include procedures/run_planned_steps.sql
--!include grants.sql
