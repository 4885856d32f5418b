-- An oid is the oid of something else once a dump is restored: each has a seal beside it that says where it was recorded.
alter table fleet.hb_partitions add column if not exists relid_seal text;
comment on column fleet.hb_partitions.relid is
  'oid of the table; null when it is dropped or gone. Names something else after a dump was restored: ask fleet.table_of().';
comment on column fleet.hb_partitions.relid_seal is 'fleet_guard.seal(relid) where relid was recorded; a trigger writes it.';
alter table fleet.adoptions add column if not exists relid_seal text;
comment on column fleet.adoptions.relid_seal is 'fleet_guard.seal(relid) where relid was recorded; a trigger writes it.';

--!include functions/seal_relid.sql
--!include functions/seal_source.sql
--!include functions/protect_partition.sql
--!include triggers/hb_partitions_seal.sql
--!include triggers/adoptions_seal.sql
--!include functions/has_bounds.sql
--!include functions/table_of.sql
--!include functions/source_table.sql
--!include functions/find_renamed.sql
--!include functions/relink_tables.sql
--!include functions/sync_partitions.sql
--!include functions/begin_run.sql
--!include functions/note_storage.sql
--!include functions/rollup_plan.sql
--!include functions/device_availability.sql
--!include functions/check_partitions.sql
--!include functions/job_definitions.sql
--!include functions/find_day_table.sql
--!include functions/retention_plan.sql
--!include functions/refresh_sizes.sql
--!include functions/metric_values.sql
--!include functions/claim_partition.sql
--!include functions/bind_range.sql
--!include functions/retire_partition.sql
--!include functions/adopt_archive.sql
--!include functions/compare_with_archive.sql
--!include functions/drop_retired.sql
--!include functions/drop_partition.sql
--!include functions/retry_archive.sql
--!include functions/accept_archive.sql
--!include functions/check_archive.sql
--!include functions/check_scheduler.sql
--!include functions/job_history.sql
--!include functions/schedule_jobs.sql
--!include functions/adoption_holds.sql
--!include functions/check_adoption.sql
--!include functions/forget_adoption.sql
--!include functions/get_adoption.sql
--!include functions/begin_adoption.sql
--!include functions/adoption_step.sql
--!include views/partition_health.sql
--!include views/storage_growth.sql

-- A publication of all tables refuses DELETE where a row cannot be named. A key would cost ingest an index.
alter table fleet.late_arrivals replica identity full;

-- The tables of a store that runs. One that was renamed by hand is attached with the bounds of its partition, or lies in
-- fleet_detached with the columns of heartbeats and the name of no other; what else there is comes from a restored dump.
update fleet.hb_partitions p
set relid_seal = fleet_guard.seal(p.relid)
where p.relid is not null and p.relid_seal is null
  and exists (
    select from pg_class c
    where c.oid = p.relid and c.relkind = 'r'
      and (
        fleet.has_bounds(c.oid, p.range_start, p.range_end)
        or (
          c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace)
          and (c.relname = p.partition_name or not exists (select from fleet.hb_partitions o where o.partition_name = c.relname))
          and exists (select from pg_attribute t where t.attrelid = c.oid and t.attname = 'ts' and t.atttypid = 'timestamptz'::regtype)
          and not c.relispartition
        )
      )
  );
update fleet.adoptions a
set relid_seal = fleet_guard.seal(a.relid)
where a.relid_seal is null and a.relid = to_regclass(a.source);

--!include grants.sql
