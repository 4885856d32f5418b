-- Brings the tables of a store of 0.1.0 to the shape in which 000001-initial.sql makes them. npm run migrate runs this once, as
-- fleet_owner, in the transaction that empties the list of migrations (cli/upgrade.ts). Then 000001-initial.sql runs and makes
-- the rest: new tables, indexes, functions, triggers, views, comments and rights. Each statement may run again.
set local datestyle = 'ISO';

-- The import of a plain table was called an adoption.
do $$
declare
  v_old record;
begin
  for v_old in
    select c.relname from pg_class c where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and c.relname ~ '^adoption'
  loop
    execute format('alter table fleet.%I rename to %I', v_old.relname, regexp_replace(v_old.relname, '^adoption', 'import'));
  end loop;
  for v_old in
    select c.conrelid::regclass::text as relation, c.conname
    from pg_constraint c
    where c.connamespace = 'fleet'::regnamespace and c.conname ~ '^adoption'
  loop
    execute format(
      'alter table %s rename constraint %I to %I',
      v_old.relation, v_old.conname, regexp_replace(v_old.conname, '^adoption', 'import')
    );
  end loop;
  for v_old in
    select c.relname from pg_class c where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'i' and c.relname ~ '^adoption'
  loop
    execute format('alter index fleet.%I rename to %I', v_old.relname, regexp_replace(v_old.relname, '^adoption', 'import'));
  end loop;
  drop trigger if exists adoptions_seal on fleet.imports;
  drop view if exists fleet.adoption_progress;
  for v_old in
    select p.oid::regprocedure::text as routine
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace
      and p.proname in (
        'adopt_table', 'abandon_adoption', 'run_adoption', 'verify_adoption', 'adoption_holds', 'adoption_plan', 'adoption_step',
        'begin_adoption', 'begin_adoption_step', 'confirm_adoption', 'end_adoption', 'forget_adoption', 'get_adoption',
        'take_adoption_lock', 'check_adoption', 'adopt_archive', 'lacking_beats', 'set_temperatures', 'count_up'
      )
  loop
    execute format('drop routine %s', v_old.routine);
  end loop;
  -- The triggers of imports that are under way name the devices of the import.
  for v_old in
    select pg_get_functiondef(p.oid) as definition
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace and p.proname ~ '^forward_\d+$'
  loop
    execute replace(v_old.definition, 'fleet.adoption_devices', 'fleet.import_devices');
  end loop;
end
$$;

alter table fleet.hb_partitions
  add column if not exists relid_seal text,
  add column if not exists columns jsonb,
  add column if not exists columns_at timestamptz,
  add column if not exists checksum_version smallint,
  add column if not exists manifest_format smallint,
  add column if not exists counted jsonb,
  add column if not exists confirmed_at timestamptz,
  add column if not exists confirmed_by text,
  add column if not exists rows_hash numeric;
alter table fleet.imports add column if not exists relid_seal text;
alter table fleet.restore_items add column if not exists left_out text;
alter table fleet.settings
  add column if not exists proofs_needed smallint not null default 1
    constraint settings_proofs_needed_range check (proofs_needed in (1, 2)),
  add column if not exists archive_stores text[] not null default '{}';

-- Functions that are gone, or that have other parameters or columns now.
drop view if exists fleet.job_health;
drop function if exists fleet.job_history();
drop function if exists fleet.job_definitions();
drop function if exists fleet.content_checksum(regclass);
drop function if exists fleet.checksum_expression(regclass);
drop function if exists fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz);
drop function if exists fleet.record_upload(text, text, text, text, bigint);
drop procedure if exists fleet.run_step(bigint, text, text, timestamptz, integer, date);
drop function if exists fleet.begin_run(text);
drop function if exists fleet.end_run(bigint, text, integer);
drop function if exists fleet.release_restore(text, text);
drop function if exists fleet.list_devices(text, interval, bigint, integer);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer);
drop function if exists fleet.hand_to_archiver(text);

-- The guard itself records what is proven. The trigger gets its new function here, so that no change of a partition is missed if
-- this run ends before 000001-initial.sql.
create or replace trigger hb_partitions_protect
  after insert or update on fleet.hb_partitions
  for each row execute function fleet_guard.note_partition();
drop function if exists fleet.protect_partition();

-- Seals the oids of a running store. A table that was renamed by hand either is attached with the bounds of its partition, or is
-- in one of the two schemas, has a column ts, and does not have the name of another partition. Any other oid came with a dump
-- that was restored.
update fleet.hb_partitions p
set relid_seal = fleet_guard.seal(p.relid)
where p.relid is not null and p.relid_seal is null
  and exists (
    select from pg_class c
    where c.oid = p.relid and c.relkind = 'r'
      and (
        (
          c.relispartition
          and exists (select from pg_inherits i where i.inhrelid = c.oid and i.inhparent = 'fleet.device_heartbeats'::regclass)
          and pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES FROM (%L) TO (%L)', p.range_start, p.range_end)
        )
        or (
          not c.relispartition
          and c.relnamespace in ('fleet'::regnamespace, 'fleet_detached'::regnamespace)
          and (c.relname = p.partition_name or not exists (select from fleet.hb_partitions o where o.partition_name = c.relname))
          and exists (
            select from pg_attribute t where t.attrelid = c.oid and t.attname = 'ts' and t.atttypid = 'timestamptz'::regtype
          )
        )
      )
  );
update fleet.imports a
set relid_seal = fleet_guard.seal(a.relid)
where a.relid_seal is null and a.relid = to_regclass(a.source);

-- Retired tables belonged to the archiver's role. Now it may only read them, as fleet.make_read_only() sets it.
do $$
declare
  v_name text;
begin
  for v_name in
    select c.relname
    from pg_class c
    where c.relnamespace = 'fleet_detached'::regnamespace and c.relkind = 'r'
      and exists (select from fleet.hb_partitions p where p.partition_name = c.relname)
  loop
    execute format('alter table fleet_detached.%I owner to fleet_owner', v_name);
    execute format(
      'revoke all on fleet_detached.%I from public, fleet_owner, fleet_server, fleet_archiver, fleet_reader, fleet_dba', v_name
    );
    execute format('grant select on fleet_detached.%I to fleet_owner, fleet_archiver, fleet_dba, fleet_reader', v_name);
  end loop;
end
$$;
