-- Brings the tables of a store of 0.1.0 to the shape in which 000001-initial.sql makes them. npm run migrate runs this once, as
-- fleet_owner, in the transaction that empties the list of migrations (cli/upgrade.ts). Then 000001-initial.sql runs and makes
-- the rest: new tables, indexes, functions, triggers, views, comments and rights. Each statement may run again.
set local datestyle = 'ISO';

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
alter table fleet.adoptions add column if not exists relid_seal text;
alter table fleet.restore_items add column if not exists left_out text;
alter table fleet.settings
  add column if not exists proofs_needed smallint not null default 1
    constraint settings_proofs_needed_range check (proofs_needed in (1, 2)),
  add column if not exists archive_stores text[] not null default '{}';

-- Functions that are gone, or that have other parameters now.
drop function if exists fleet.content_checksum(regclass);
drop function if exists fleet.checksum_expression(regclass);
drop function if exists fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz);
drop function if exists fleet.record_upload(text, text, text, text, bigint);
drop function if exists fleet.adopt_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint
);
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
update fleet.adoptions a
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
    if current_setting('server_version_num')::integer >= 170000 then
      execute format('grant maintain on fleet_detached.%I to fleet_owner, fleet_archiver', v_name);
    end if;
  end loop;
end
$$;
