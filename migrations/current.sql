-- Enter migration here
create table if not exists fleet.ticked_jobs (
  jobname text primary key,
  started_at timestamptz not null,
  status text not null check (status in ('running', 'succeeded', 'failed')),
  message text,
  last_success timestamptz
);
comment on table fleet.ticked_jobs is 'The last run of each job by npm run tick. Empty where pg_cron runs the jobs.';
comment on column fleet.ticked_jobs.jobname is 'The job, as in fleet.job_definitions().';
comment on column fleet.ticked_jobs.started_at is 'When it last began.';
comment on column fleet.ticked_jobs.status is 'Whether it runs, or how it ended. One whose session was lost stays running until it begins again.';
comment on column fleet.ticked_jobs.message is 'The error with which it failed.';
comment on column fleet.ticked_jobs.last_success is 'When the last run that succeeded began.';

--!include jobs/job_lock.sql
--!include jobs/begin_job.sql
--!include jobs/end_job.sql
--!include jobs/job_history.sql
--!include jobs/job_health.view.sql
--!include jobs/job_definitions.sql
--!include jobs/scheduler_ages.sql
--!include access/current_actor.sql
--!include checks/check_scheduler.sql

--!include scaling/shard_map.sql

create table if not exists fleet.recorded_forms (
  object text not null,
  form text not null,
  constraint recorded_forms_pkey primary key (object)
);

comment on table fleet.recorded_forms is
  'A hash of each function and view that npm run migrate has installed in a distributed store; written by fleet.record_forms(). '
  'Empty in a plain store.';
comment on column fleet.recorded_forms.object is 'The function with its arguments, or the view, with its schema.';
comment on column fleet.recorded_forms.form is 'What fleet.form_of() returned for it.';

--!include scaling/form_of.sql
--!include scaling/record_forms.sql
--!include checks/nodes_away.sql
--!include checks/check_nodes.sql
--!include checks/check.sql
--!include checks/check_sessions.sql
--!include import/describe_source.sql
--!include access/create_reader.sql
--!include ingest/device_heartbeats.trigger.sql
--!include status/device_last_status.trigger.sql
--!include archive/register_archive.sql
--!include devices/ack_command.sql
--!include erase/delete_heartbeats.sql
--!include erase/erase_device.sql
--!include erase/erase_step.sql
--!include setup/grants.sql
