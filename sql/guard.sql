-- The guard that refuses to drop a partition whose archive is not proven. Run at setup, before the migrations, by the
-- administrator: it lives in a schema of its own, so that `drop schema fleet cascade` meets it, and not with it.
-- Names are found in Postgres itself, whoever runs this: nothing that an ordinary role made takes their place.
set search_path = pg_catalog, pg_temp;

create schema if not exists fleet_guard;
comment on schema fleet_guard is
  'Refuses to drop heartbeat partitions without a proven archive. Kept apart from schema fleet so that dropping fleet is refused too.';

create table if not exists fleet_guard.partitions (
  partition_name text not null constraint partitions_pkey primary key,
  relid oid,
  is_proven boolean not null
);
comment on table fleet_guard.partitions is
  'What may be dropped, kept by a trigger on fleet.hb_partitions. A table that is not here, or not proven here, stays.';
comment on column fleet_guard.partitions.partition_name is 'Name of the partition, in schema fleet or fleet_detached.';
comment on column fleet_guard.partitions.relid is 'Its oid, so that a renamed or moved table is still recognised.';
comment on column fleet_guard.partitions.is_proven is 'True when its archive was read back and proven, or when it was proven empty.';

grant usage on schema fleet_guard to fleet_owner;
grant select, insert, update on fleet_guard.partitions to fleet_owner;

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
    where p.relid = o.objid
      or (p.partition_name = o.object_name and o.schema_name in ('fleet', 'fleet_detached'))
  ) g on true
  where o.classid = 'pg_class'::regclass
    and o.objsubid = 0
    and o.object_type = 'table'
    and not o.is_temporary
    and not coalesce(
      g.is_proven,
      -- Unknown to the guard: refused where only partitions live, or with a partition's name.
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
  'Event trigger on sql_drop: ends any statement that would drop a heartbeat partition whose archive is not proven.';

revoke all on function fleet_guard.refuse_unproven_drop() from public;

create or replace function fleet_guard.end_setup() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('revoke create on database %I from fleet_owner', current_database());
end
$$;
comment on function fleet_guard.end_setup() is
  'Takes from fleet_owner the right to create schemas in this database, which only the first migration needs. Called after each migration.';

revoke all on function fleet_guard.end_setup() from public;
grant execute on function fleet_guard.end_setup() to fleet_owner;

do $$
begin
  if exists (select from pg_catalog.pg_event_trigger where evtname = 'fleet_guard_drop') then
    return;
  end if;
  if not (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
    raise warning using
      message = format('%s is not a superuser: the event trigger fleet_guard_drop was not created', current_user),
      detail = 'fleet.drop_partition() still refuses an unproven partition; a plain DROP TABLE by the owner is not guarded.',
      hint = 'As superuser: create event trigger fleet_guard_drop on sql_drop execute function fleet_guard.refuse_unproven_drop(); '
        'alter event trigger fleet_guard_drop enable always;';
    return;
  end if;
  create event trigger fleet_guard_drop on sql_drop execute function fleet_guard.refuse_unproven_drop();
  alter event trigger fleet_guard_drop enable always;
  comment on event trigger fleet_guard_drop is
    'Refuses to drop a heartbeat partition whose archive is not proven (fleet_guard.partitions).';
end
$$;
