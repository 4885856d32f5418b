-- The guard that refuses to drop a partition whose archive is not proven. Run at setup, before the migrations, by the
-- administrator. It has a schema of its own, so that it refuses `drop schema fleet cascade`, too, instead of being dropped by it.
-- Names resolve in pg_catalog, no matter who runs this, so that no object of an ordinary role is used instead.
set search_path = pg_catalog, pg_temp;

create schema if not exists fleet_guard;
comment on schema fleet_guard is
  'Refuses to drop heartbeat partitions without a proven archive. Separate from schema fleet, so that dropping fleet is refused, '
  'too.';

create table if not exists fleet_guard.partitions (
  partition_name text not null constraint partitions_pkey primary key,
  relid oid,
  is_proven boolean not null
);
alter table fleet_guard.partitions add column if not exists relid_seal text;
comment on table fleet_guard.partitions is
  'Which tables may be dropped, recorded by a trigger on fleet.hb_partitions. A table that is missing here, or not proven, is '
  'not dropped.';
comment on column fleet_guard.partitions.partition_name is 'Name of the partition, in schema fleet or fleet_detached.';
comment on column fleet_guard.partitions.relid is 'The oid of the table, so that it is recognized after it was renamed or moved.';
comment on column fleet_guard.partitions.relid_seal is
  'fleet_guard.seal(relid) when the oid was recorded. If it differs now, the row came with a dump, and relid is not valid here.';
comment on column fleet_guard.partitions.is_proven is
  'True if the archive of the partition was read back and proven, or if the partition was proven empty.';

grant usage on schema fleet_guard to fleet_owner;
-- Not even the owner may write here: only the trigger below records what is proven. Until the migrations of 0.2 have run, a
-- trigger of the owner does that; fleet_guard.end_setup() revokes the right after them.
grant select on fleet_guard.partitions to fleet_owner;
do $$
begin
  if to_regclass('fleet.hb_partitions') is null or to_regproc('fleet.protect_partition') is not null then
    grant insert, update on fleet_guard.partitions to fleet_owner;
  end if;
end
$$;

-- An oid is valid only in the catalog that assigned it. A dump brings the oids of another catalog, and their seals never match
-- here: the restored table of the guard has a new oid, and another cluster has another identifier. (pg_upgrade keeps the oids and
-- changes the identifier, so the tables are looked up again.)
create or replace function fleet_guard.seal(p_relid oid) returns text
language plpgsql
stable
strict
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_system bigint := 0;
begin
  -- A managed Postgres may hide the identifier. Then the oid of the guard's table has to be enough.
  if has_function_privilege('pg_control_system()', 'execute') then
    v_system := (select s.system_identifier from pg_control_system() s);
  end if;
  return format('%s/%s:%s', v_system, 'fleet_guard.partitions'::regclass::oid, p_relid);
end
$$;
comment on function fleet_guard.seal(oid) is
  'A text that is stored with an oid. If it differs later, the oid was not recorded in this database but came with a dump of '
  'another one.';

revoke all on function fleet_guard.seal(oid) from public;
grant execute on function fleet_guard.seal(oid) to fleet_owner;

create or replace function fleet_guard.note_partition() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- A policy is code of the owner as well. With this setting it causes an error instead of being run.
set row_security = off
as $$
declare
  v_relation record;
  v_has_rows boolean := false;
  v_is_empty boolean := new.is_proven_empty;
begin
  if tg_relid <> to_regclass('fleet.hb_partitions') then
    raise exception using
      errcode = 'FL001',
      message = format(
        'a trigger on %s cannot record what may be dropped; only one on fleet.hb_partitions can', tg_relid::regclass
      ),
      hint = 'Drop that trigger; fleet.hb_partitions has its own.';
  end if;
  if v_is_empty then
    -- The guard checks this itself, and only in plain tables, because a view or the like would run the owner's code with the
    -- guard's rights.
    for v_relation in
      select c.oid, c.relkind
      from pg_class c
      where c.oid in (
        select k.relid
        from fleet_guard.partitions k
        where k.partition_name = new.partition_name and k.relid_seal = fleet_guard.seal(k.relid)
        union all
        select unnest(array[
          new.relid, to_regclass(format('fleet.%I', new.partition_name)),
          to_regclass(format('fleet_detached.%I', new.partition_name))
        ])
      )
    loop
      if v_relation.relkind = 'r' then
        execute format('select exists (select 1 from only %s)', v_relation.oid::regclass) into v_has_rows;
      end if;
      v_is_empty := v_is_empty and v_relation.relkind = 'r' and not v_has_rows;
    end loop;
  end if;
  -- A restored day counts as unproven again, because rows may be added while it is attached.
  insert into fleet_guard.partitions as g (partition_name, relid, relid_seal, is_proven)
  values (
    new.partition_name, new.relid, new.relid_seal,
    v_is_empty or new.state in ('archived', 'dropped') and new.proven_at is not null
  )
  on conflict (partition_name) do update
    set is_proven = excluded.is_proven,
      -- The oid of a table that still exists stays here, whatever the row of the partition says now.
      (relid, relid_seal) = (
        select f.relid, f.relid_seal
        from (
          values (1, g.relid, g.relid_seal), (2, excluded.relid, excluded.relid_seal)
        ) as f (position, relid, relid_seal)
        where f.position = 2
          or (
            f.relid_seal = fleet_guard.seal(f.relid)
            and exists (select from pg_class c where c.oid = f.relid and c.relkind = 'r')
          )
        order by f.position
        limit 1
      )
    where (g.relid, g.relid_seal, g.is_proven) is distinct from (excluded.relid, excluded.relid_seal, excluded.is_proven);
  return null;
end
$$;
comment on function fleet_guard.note_partition() is
  'Trigger on fleet.hb_partitions: keeps fleet_guard.partitions up to date. A partition is proven if its archive is proven, or '
  'if the guard finds it empty.';

create or replace function fleet_guard.refuse_unproven_drop() returns event_trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table text;
begin
  select o.object_identity
  into v_table
  from pg_event_trigger_dropped_objects() o
  left join lateral (
    select bool_and(p.is_proven) as is_proven
    from fleet_guard.partitions p
    where (p.relid = o.objid and p.relid_seal = fleet_guard.seal(o.objid))
      or (p.partition_name = o.object_name and o.schema_name in ('fleet', 'fleet_detached'))
  ) g on true
  where o.classid = 'pg_class'::regclass
    and o.objsubid = 0
    and o.object_type = 'table'
    and not o.is_temporary
    and not coalesce(
      g.is_proven,
      -- A table that the guard does not know: refused in the schema of retired partitions, or if it is named like a partition.
      o.schema_name <> 'fleet_detached' and not (o.schema_name = 'fleet' and o.object_name like 'device\_heartbeats\_p%')
    )
  order by o.object_identity
  limit 1;

  if found then
    raise exception using
      errcode = 'FL001',
      message = format('table %s holds heartbeats without a proven archive and is not dropped', v_table),
      hint = 'Let the archiver prove it (select fleet.archive_partition(name)), then select fleet.drop_partition(name). '
        'See select * from fleet.partition_health.';
  end if;
end
$$;
comment on function fleet_guard.refuse_unproven_drop() is
  'Event trigger on sql_drop: refuses any statement that would drop a heartbeat partition whose archive is not proven.';

-- After a restore the tables still have the names that they had in the dump. Every statement that can rename or move a table runs
-- this first, so that the guard recognizes the table afterwards, even before the first maintenance.
create or replace function fleet_guard.find_restored_tables() returns event_trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_catalog text := fleet_guard.seal(0);
begin
  v_catalog := left(v_catalog, -1);  -- read once, not for each row
  update fleet_guard.partitions p
  set relid = f.relid, relid_seal = fleet_guard.seal(f.relid)
  from (
    select k.partition_name,
      coalesce(
        to_regclass(format('fleet_detached.%I', k.partition_name)), to_regclass(format('fleet.%I', k.partition_name))
      )::oid as relid
    from fleet_guard.partitions k
    where k.relid is not null and k.relid_seal is distinct from v_catalog || k.relid
  ) f
  where f.partition_name = p.partition_name;
end
$$;
comment on function fleet_guard.find_restored_tables() is
  'Event trigger before ALTER: after a dump was restored, finds partitions by name before one can be renamed or moved.';

revoke all on function
  fleet_guard.refuse_unproven_drop(), fleet_guard.find_restored_tables(), fleet_guard.note_partition()
from public;
grant execute on function fleet_guard.note_partition() to fleet_owner;

create or replace function fleet_guard.end_setup() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('revoke create on database %I from fleet_owner', current_database());
  if to_regproc('fleet.protect_partition') is null then
    revoke insert, update, delete, truncate, references, trigger on fleet_guard.partitions from fleet_owner;
  end if;
end
$$;
comment on function fleet_guard.end_setup() is
  'Revokes from fleet_owner the rights that only migrations need: to create schemas in this database and to record what is '
  'proven. Called after the migrations.';

revoke all on function fleet_guard.end_setup() from public;
grant execute on function fleet_guard.end_setup() to fleet_owner;

do $$
begin
  if (
    select count(*) from pg_catalog.pg_event_trigger where evtname in ('fleet_guard_drop', 'fleet_guard_find')
  ) = 2 then
    return;
  end if;
  if not (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
    raise warning using
      message = format(
        '%s is not a superuser: the event triggers fleet_guard_drop and fleet_guard_find were not created', current_user
      ),
      detail = 'fleet.drop_partition() still refuses an unproven partition; a plain DROP TABLE by the owner is not guarded.',
      hint = 'As superuser, run sql/setup/guard.sql again.';
    return;
  end if;
  drop event trigger if exists fleet_guard_drop;
  create event trigger fleet_guard_drop on sql_drop execute function fleet_guard.refuse_unproven_drop();
  alter event trigger fleet_guard_drop enable always;
  comment on event trigger fleet_guard_drop is
    'Refuses to drop a heartbeat partition whose archive is not proven (fleet_guard.partitions).';
  drop event trigger if exists fleet_guard_find;
  -- Every command that can rename or move a table; even ALTER INDEX and ALTER VIEW can rename one.
  create event trigger fleet_guard_find on ddl_command_start
    when tag in (
      'ALTER TABLE', 'ALTER SCHEMA', 'ALTER INDEX', 'ALTER VIEW', 'ALTER MATERIALIZED VIEW', 'ALTER SEQUENCE',
      'ALTER FOREIGN TABLE'
    )
    execute function fleet_guard.find_restored_tables();
  alter event trigger fleet_guard_find enable always;
  comment on event trigger fleet_guard_find is
    'After a dump was restored, finds the new oids of the partitions before one is renamed or moved.';
end
$$;
