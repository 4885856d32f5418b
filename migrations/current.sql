-- Enter migration here

-- Settled days: past partitions in the order of devices, without the dedupe key.
alter table fleet.hb_partitions add column if not exists settled_at timestamptz;
comment on column fleet.hb_partitions.settled_at is
  'When the partition was rewritten in the order of (device_id, ts) and closed for new rows. Null: it takes rows. See '
  'fleet.settle_partition().';

alter table fleet.settings
  add column if not exists settle boolean not null default true,
  add column if not exists settle_max_wait interval not null default '15 seconds',
  add column if not exists settle_budget interval not null default '15 minutes';
alter table fleet.settings drop constraint if exists settings_settle_max_wait_range;
alter table fleet.settings add constraint settings_settle_max_wait_range check (settle_max_wait > '0');
alter table fleet.settings drop constraint if exists settings_settle_budget_range;
alter table fleet.settings
  add constraint settings_settle_budget_range check (settle_budget > '0' and settle_budget <= '30 minutes');
comment on column fleet.settings.settle is
  'Whether the night settles days for which no heartbeat can come any more: stores them in the order of devices and drops their '
  'dedupe key. False: it settles no further day. Days that are settled stay so; fleet.unsettle_partition() opens one.';
comment on column fleet.settings.settle_max_wait is
  'A day is settled only if its readers will probably wait no longer than this. Measured on two shared cores: 400,000 rows a '
  'second.';
comment on column fleet.settings.settle_budget is
  'For how long a night may go on settling days. It finishes the day that it has begun. The hourly maintenance waits for it.';

--!include partitions/dedupe_key.sql
--!include partitions/attached_partitions.sql
--!include partitions/has_bounds.sql
--!include partitions/dedupe_index.sql
--!include partitions/newest_index.sql
--!include partitions/is_settled.sql
--!include partitions/bytes_of.sql
--!include partitions/has_pages.sql
--!include partitions/close_partition.sql
--!include partitions/unsettle_partition.sql
--!include partitions/partition_health.view.sql
--!include partitions/storage_growth.view.sql
--!include partitions/retention_plan.sql
--!include partitions/settle_plan.sql
--!include partitions/settle_partition.sql
--!include partitions/sync_partitions.sql
--!include partitions/tune_autovacuum.sql
--!include ingest/ingest_batch.sql
--!include ingest/replay_quarantine.sql
--!include import/prepare_partitions.sql
--!include import/move_blocks.sql
--!include archive/finish_restore.sql
--!include jobs/do_step.sql
--!include jobs/begin_run.sql
--!include jobs/run_next_step.sql
--!include jobs/nightly_plan.sql
--!include jobs/nightly.sql
--!include jobs/maintain.sql
--!include jobs/job_definitions.sql
--!include status/device_day.sql
--!include checks/check_ingest.sql
--!include checks/check_storage.sql
--!include checks/check_partitions.sql
--!include setup/grants.sql
