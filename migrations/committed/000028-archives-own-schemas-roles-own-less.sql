--! Previous: sha1:0b4b26d6b47a7d2682253d5f4f36f7616f259278
--! Hash: sha1:8aeca77ddc7515f65b0f5551c0df636aef3cebc9
--! Message: Archives own schemas; roles own less

-- After a dump was restored, an oid names something else. So each oid is stored with a seal that tells where it was recorded.
alter table fleet.hb_partitions add column if not exists relid_seal text;
comment on column fleet.hb_partitions.relid is
  'oid of the table; null if it is dropped or gone. After a dump was restored it names something else, so use fleet.table_of().';
comment on column fleet.hb_partitions.relid_seal is 'fleet_guard.seal(relid) when relid was recorded; set by a trigger.';
alter table fleet.adoptions add column if not exists relid_seal text;
comment on column fleet.adoptions.relid_seal is 'fleet_guard.seal(relid) when relid was recorded; set by a trigger.';

-- An archive owns its schema: its columns are recorded with it, as they were when the day was detached.
alter table fleet.hb_partitions
  add column if not exists columns jsonb,
  add column if not exists columns_at timestamptz,
  add column if not exists checksum_version smallint,
  add column if not exists manifest_format smallint;
comment on column fleet.hb_partitions.columns is
  'The columns of its archive, in order, as [{"name", "type"}]; null for an archive from before 0.2 until the archiver has read its manifest.';
comment on column fleet.hb_partitions.columns_at is
  'The time at which the table had the columns of the archive; fleet.map_columns() follows later changes. Null: before the first change in fleet.column_changes.';
comment on column fleet.hb_partitions.checksum_version is 'The version of the definition of content_checksum; see fleet.content_checksum().';
comment on column fleet.hb_partitions.manifest_format is 'The format_version of the manifest of its archive.';

alter table fleet.restore_items add column if not exists left_out text;
comment on column fleet.restore_items.left_out is
  'The columns of the archive that the table no longer has; their values stay in the archive. Null: none.';

create table if not exists fleet.heartbeat_columns (
  name text not null constraint heartbeat_columns_pkey primary key,
  type text not null,
  attnum smallint not null,
  relid oid not null,
  system_identifier bigint not null
);
comment on table fleet.heartbeat_columns is
  'The columns that fleet.device_heartbeats had at the last call of fleet.note_columns().';
comment on column fleet.heartbeat_columns.name is 'Name of the column.';
comment on column fleet.heartbeat_columns.type is 'Its type, as format_type() names it.';
comment on column fleet.heartbeat_columns.attnum is 'Its number, which a rename does not change.';
comment on column fleet.heartbeat_columns.relid is 'oid of the table. In another table, as after a dump was restored, the numbers mean nothing.';
comment on column fleet.heartbeat_columns.system_identifier is 'The cluster that the oid belongs to; 0 if it is hidden.';

create table if not exists fleet.column_changes (
  change_id bigint generated always as identity constraint column_changes_pkey primary key,
  changed_at timestamptz not null,
  change text not null constraint column_changes_change_known check (change in ('added', 'dropped', 'renamed', 'retyped')),
  name text not null,
  new_name text,
  type text,
  new_type text
);
comment on table fleet.column_changes is
  'Changes of the columns of fleet.device_heartbeats, by which older archives are read and restored under today''s names.';
comment on column fleet.column_changes.change_id is 'Order of the changes.';
comment on column fleet.column_changes.changed_at is 'When the change was noted; changes that were noted together have the same time.';
comment on column fleet.column_changes.change is 'added, dropped, renamed or retyped.';
comment on column fleet.column_changes.name is 'Name of the column, before the change if it was renamed.';
comment on column fleet.column_changes.new_name is 'Its name after a rename.';
comment on column fleet.column_changes.type is 'Its type before the change; null when it was added.';
comment on column fleet.column_changes.new_type is 'Its type after the change; null when it was dropped.';

drop function if exists fleet.content_checksum(regclass);
drop function if exists fleet.checksum_expression(regclass);
drop function if exists fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz);
drop function if exists fleet.record_upload(text, text, text, text, bigint);
drop function if exists fleet.adopt_archive(text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint);

-- Logout ends a session of the ops page on every server.
create table if not exists fleet.ended_sessions (
  session_hash bytea not null,
  ends_at timestamptz not null,
  constraint ended_sessions_pkey primary key (session_hash),
  constraint ended_sessions_hash_is_sha256 check (length(session_hash) = 32)
);
comment on table fleet.ended_sessions is
  'Sessions of the ops page that were ended by a logout. Kept until they would have expired anyway.';
comment on column fleet.ended_sessions.session_hash is 'SHA-256 of the text in the cookie without its signature, so that nobody can log in with it.';
comment on column fleet.ended_sessions.ends_at is 'When the cookie expires; the next logout after that removes the row.';

-- A run of maintenance runs the steps that the owner planned for it.
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
  'The steps that a run of maintenance still has to do; empty between runs. Written by fleet.begin_run(), fleet.run_next_step() and fleet.end_run() only.';
comment on column fleet.planned_steps.run_id is 'The run, as in fleet.events.';
comment on column fleet.planned_steps.position is 'The order of the steps.';
comment on column fleet.planned_steps.step is 'The step. A step that begins with plan_ is replaced by one step for each day or partition that it finds.';
comment on column fleet.planned_steps.partition_name is 'The partition of the step, if it has one.';
comment on column fleet.planned_steps.day is 'The UTC day of the step, if it has one.';
comment on column fleet.planned_steps.retention is 'The retention that was requested for the run; null: that of fleet.settings.';
comment on column fleet.planned_steps.as_of is 'The time that the run uses as now.';
comment on column fleet.planned_steps.pid is 'The backend of the run; no other one may run its steps.';

drop procedure if exists fleet.run_step(bigint, text, text, timestamptz, integer, date);
drop function if exists fleet.begin_run(text);
drop function if exists fleet.end_run(bigint, text, integer);
drop function if exists fleet.release_restore(text, text);
drop function if exists fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz);

alter table fleet.hb_partitions add column if not exists counted jsonb;
comment on column fleet.hb_partitions.counted is
  'The result of fleet.count_retired() for the current export; null before and after it.';

alter table fleet.hb_partitions
  add column if not exists confirmed_at timestamptz,
  add column if not exists confirmed_by text;
comment on column fleet.hb_partitions.confirmed_at is 'When the archive was confirmed by fleet.confirm_archive(); null: not yet.';
comment on column fleet.hb_partitions.confirmed_by is 'The login that confirmed it.';
alter table fleet.settings add column if not exists proofs_needed smallint not null default 1
  constraint settings_proofs_needed_range check (proofs_needed in (1, 2));
comment on column fleet.settings.proofs_needed is
  '1: a partition is dropped once the archiver has proven its archive. 2: it is dropped once a login of fleet_verifier has confirmed the archive, too.';

alter table fleet.settings add column if not exists archive_stores text[] not null default '{}';
comment on column fleet.settings.archive_stores is
  'Additional stores whose archives may be registered, written like ARCHIVE_URL. Stores in which this database has archives need no entry.';

-- Filters by cohort and alias, and the everyday chores of a device.
drop function if exists fleet.list_devices(text, interval, bigint, integer);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer);
create index if not exists devices_cohort_idx on fleet.devices (cohort, device_id);
comment on index fleet.devices_cohort_idx is 'Pages of fleet.list_devices(p_cohort => …).';

alter table fleet.hb_partitions add column if not exists rows_hash numeric;
comment on column fleet.hb_partitions.rows_hash is
  'fleet.rows_hash() of the retired table when its rows were counted. Null for an archive from before 0.2.';

--! Included functions/seal_relid.sql
create or replace function fleet.seal_relid() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seal text := fleet_guard.seal(new.relid);
begin
  -- A new seal requires that the table has the partition's name. A seal that fits is kept, even if the table was renamed later.
  if new.relid_seal is distinct from v_seal then
    new.relid_seal := case
      when exists (
        select from pg_class c
        where c.oid = new.relid and c.relkind = 'r' and c.relname = new.partition_name
          and c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached'))
      ) then v_seal
    end;
  end if;
  return new;
end
$$;

comment on function fleet.seal_relid() is
  'Trigger on fleet.hb_partitions: sets relid_seal if relid is recorded in this database while its table has the name of the partition.';
--! EndIncluded functions/seal_relid.sql
--! Included functions/seal_source.sql
create or replace function fleet.seal_source() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.relid_seal := coalesce(new.relid_seal, fleet_guard.seal(new.relid));
  return new;
end
$$;

comment on function fleet.seal_source() is
  'Trigger on fleet.adoptions: sets relid_seal, which marks relid as recorded in this database.';
--! EndIncluded functions/seal_source.sql
--! Included functions/has_bounds.sql
create or replace function fleet.has_bounds(p_table oid, p_range_start timestamptz, p_range_end timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
as $$
  select exists (
    select from pg_class c
    join pg_inherits i on i.inhrelid = c.oid and i.inhparent = to_regclass('fleet.device_heartbeats')
    where c.oid = p_table
      and pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES FROM (%L) TO (%L)', p_range_start, p_range_end)
  );
$$;

comment on function fleet.has_bounds(oid, timestamptz, timestamptz) is
  'Whether a table is attached to fleet.device_heartbeats with exactly these bounds.';
--! EndIncluded functions/has_bounds.sql
--! Included functions/table_of.sql
-- relid is trusted only if the catalog agrees, because in a restored dump it is the oid of something else. The cheap cases come first,
-- since views call this for each partition.
create or replace function fleet.table_of(p fleet.hb_partitions) returns oid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_class record;
  v_schema name;
  v_table oid;
begin
  -- An attached partition has no other table than the one that was attached.
  if p.relid is null and p.state in ('active', 'restored', 'dropped') then
    return null;
  end if;
  select c.oid, c.relname, c.relispartition, c.relnamespace in (to_regnamespace('fleet'), to_regnamespace('fleet_detached')) as is_ours
  into v_class
  from pg_class c
  where c.oid = p.relid and c.relkind = 'r';
  if found and v_class.relname = p.partition_name and v_class.is_ours then
    return v_class.oid;
  end if;
  -- Renamed or moved by hand.
  if v_class.relispartition and fleet.has_bounds(v_class.oid, p.range_start, p.range_end) then
    return v_class.oid;
  end if;
  if v_class.oid is not null and p.relid_seal = fleet_guard.seal(p.relid) then
    return v_class.oid;
  end if;
  foreach v_schema in array
    case when p.state in ('active', 'restored') then array['fleet', 'fleet_detached'] else array['fleet_detached', 'fleet'] end
  loop
    select c.oid into v_table
    from pg_class c
    where c.relnamespace = to_regnamespace(v_schema) and c.relname = p.partition_name and c.relkind = 'r'
      and (not c.relispartition or fleet.has_bounds(c.oid, p.range_start, p.range_end))
      and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'ts' and a.atttypid = 'timestamptz'::regtype);
    if found then
      return v_table;
    end if;
  end loop;
  if p.state in ('active', 'restored') and p.relid_seal is distinct from fleet_guard.seal(p.relid) then
    -- Renamed by hand before a dump.
    select a.relid into v_table
    from fleet.attached_partitions() a
    where (a.range_start, a.range_end) = (p.range_start, p.range_end);
    return v_table;
  end if;
  return null;
end
$$;

comment on function fleet.table_of(fleet.hb_partitions) is
  'The oid of a partition''s table, attached or retired, or null. Use it instead of fleet.hb_partitions.relid, which is the oid of something else after a dump was restored; the table is then found by name. Example: select p.partition_name, fleet.table_of(p)::regclass from fleet.hb_partitions p;';
--! EndIncluded functions/table_of.sql
--! Included functions/source_table.sql
create or replace function fleet.source_table(a fleet.adoptions) returns oid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case
    when a.relid_seal = fleet_guard.seal(a.relid) then (select c.oid from pg_class c where c.oid = a.relid)
    else (select c.oid from pg_class c where c.oid = to_regclass(a.source) and c.relkind = 'r')
  end;
$$;

comment on function fleet.source_table(fleet.adoptions) is
  'The oid of a table that is being adopted, or null if it is gone. Found by name if fleet.adoptions.relid came with a dump of another cluster.';
--! EndIncluded functions/source_table.sql
--! Included functions/find_renamed.sql
-- Neither the oid nor the name identifies such a table any more, so its rows have to. If two tables fit, neither is chosen.
create or replace function fleet.find_renamed(p fleet.hb_partitions) returns oid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_table record;
  v_fits boolean;
  v_found oid[] := array[]::oid[];
begin
  if p.state in ('active', 'restored', 'dropped') then
    return null;
  end if;
  for v_table in
    select c.oid, c.relname
    from pg_class c
    where c.relnamespace = to_regnamespace('fleet_detached') and c.relkind = 'r' and not c.relispartition
      and not exists (select from fleet.hb_partitions o where o.partition_name = c.relname)
      and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'ts' and a.atttypid = 'timestamptz'::regtype)
  loop
    execute format('select min(ts) >= $1 and max(ts) < $2 from fleet_detached.%I', v_table.relname)
    into v_fits
    using p.range_start, p.range_end;
    if v_fits then
      v_found := v_found || v_table.oid;
    end if;
  end loop;
  return case when cardinality(v_found) = 1 then v_found[1] end;
end
$$;

comment on function fleet.find_renamed(fleet.hb_partitions) is
  'Finds a retired table that was renamed by hand before a dump: the only table in fleet_detached that has no partition''s name and only heartbeats of this partition''s range. Null if there is none, or more than one.';
--! EndIncluded functions/find_renamed.sql
--! Included functions/relink_tables.sql
-- Fixes everything in a restored dump that had a meaning only in the cluster from which it was taken.
create or replace function fleet.relink_tables() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_catalog text := left(fleet_guard.seal(0), -1);  -- read once, not for each row
  v_partition fleet.hb_partitions;
  v_adoption fleet.adoptions;
  v_table oid;
  v_found integer := 0;
  v_lost text[] := array[]::text[];
begin
  for v_partition in
    select p.*
    from fleet.hb_partitions p
    where p.relid is not null and p.relid_seal is distinct from v_catalog || p.relid
    order by p.range_start
    for update
  loop
    v_table := coalesce(fleet.table_of(v_partition), fleet.find_renamed(v_partition));
    update fleet.hb_partitions p
    set relid = v_table, relid_seal = v_catalog || v_table,
      -- Transaction numbers of this cluster.
      cold_xid = case when p.cold_xid is not null then pg_current_xact_id()::xid end,
      last_error = case when v_table is null then 'the table is gone' else p.last_error end
    where p.partition_name = v_partition.partition_name;
    if v_table is null then
      v_lost := v_lost || v_partition.partition_name;
    else
      v_found := v_found + 1;
    end if;
  end loop;

  for v_adoption in
    select a.*
    from fleet.adoptions a
    where a.relid_seal is distinct from v_catalog || a.relid
    for update
  loop
    v_table := coalesce(fleet.source_table(v_adoption), 0);
    if v_table <> v_adoption.relid
      and to_regproc(format('fleet.%I', 'forward_' || v_adoption.relid)) is not null
      and to_regproc(format('fleet.%I', 'forward_' || v_table)) is null then
      execute format('alter function fleet.%I() rename to %I', 'forward_' || v_adoption.relid, 'forward_' || v_table);
    end if;
    update fleet.adoptions a
    set relid = v_table, relid_seal = v_catalog || v_table,
      -- The rows lie in other places of the table now, so it is read from the start.
      filenode = 0,
      -- Rows that were written after the verification were found by transaction numbers, which are different here.
      state = case a.state when 'verified' then 'moved' else a.state end,
      verified_xid = null, verified_at = null
    where a.source = v_adoption.source;
    v_found := v_found + 1;
  end loop;

  if v_found > 0 or cardinality(v_lost) > 0 then
    -- Transaction numbers of another cluster may lie in the future here, and servers would forget those tokens at every look.
    delete from fleet.token_change_log l
    where l.changed_xid >= pg_snapshot_xmax(pg_current_snapshot());
    perform fleet.record_event(
      'store.relinked', p_rows => v_found, p_is_ok => cardinality(v_lost) = 0,
      p_detail => concat_ws('; ', 'tables found by name', 'no table found for ' || nullif(array_to_string(v_lost, ', '), ''))
    );
  end if;
  return v_found;
end
$$;

comment on function fleet.relink_tables() is
  'After a dump was restored, finds the table of each partition and adoption by name and records its new oid; returns how many. Changes nothing in any other store. Run at the start of fleet.maintain() and fleet.nightly(), and by fleet.sync_partitions().';
--! EndIncluded functions/relink_tables.sql
--! Included functions/sync_partitions.sql
create or replace function fleet.sync_partitions() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_new text;
  v_count integer := 0;
begin
  perform fleet.relink_tables();
  for v_new in
    insert into fleet.hb_partitions as p (partition_name, relid, range_start, range_end)
    select a.partition_name, a.relid, a.range_start, a.range_end
    from fleet.attached_partitions() a
    left join fleet.hb_partitions known using (partition_name)
    where (
        known.partition_name is null
        or known.relid is distinct from a.relid
        or known.state not in ('active', 'restored')
      )
      -- Renamed by hand: fleet.check() asks for its name back.
      and not exists (
        select from fleet.hb_partitions o where o.relid = a.relid and o.partition_name <> a.partition_name
      )
    order by a.range_start
    -- A known name is a table that came back: restored from a dump, or attached by hand.
    on conflict (partition_name) do update
      set relid = excluded.relid,
        range_start = excluded.range_start,
        range_end = excluded.range_end,
        state = case when p.state = 'restored' then 'restored' else 'active' end,
        is_proven_empty = false,
        step = null, lease_owner = null, lease_until = null, next_attempt_at = null
    returning p.partition_name
  loop
    v_count := v_count + 1;
    perform fleet.record_event('partition.create', v_new);
  end loop;
  if v_count > 0 then
    perform fleet.count_up('partitions_created_total', v_count);
  end if;

  -- Detached by hand: it goes the way of the others. Gone altogether: said by fleet.check().
  update fleet.hb_partitions p
  set relid = c.oid,
    state = case when c.oid is null then p.state else 'detached' end,
    detached_at = case when c.oid is null then p.detached_at else now() end,
    last_error = case when c.oid is null then 'the table is gone' else p.last_error end
  from fleet.hb_partitions q
  left join pg_class c on c.oid = q.relid and c.relkind = 'r' and not c.relispartition
  where q.partition_name = p.partition_name
    and p.state in ('active', 'restored')
    and p.relid is not null
    and not exists (select from pg_inherits i where i.inhrelid = p.relid and i.inhparent = to_regclass('fleet.device_heartbeats'));

  return v_count;
end
$$;

comment on function fleet.sync_partitions() is
  'Brings fleet.hb_partitions in line with the catalog; returns how many partitions were new to it.';
--! EndIncluded functions/sync_partitions.sql
--! Included functions/begin_run.sql
-- The steps are planned here, with the owner's rights, and a caller can only run the next one. So a role that may start a
-- night cannot choose the partition, the day or the time of a step.
create or replace function fleet.begin_run(p_kind text, p_retention interval default null, p_now timestamptz default now())
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint := hashtextextended('fleet.maintenance', 0);
  v_run_id bigint;
  v_holder integer;
  v_steps constant text[] := case p_kind
    -- Premake comes first and in its own transaction, because ingest depends on it. Each plan_ step is replaced by one step for
    -- each day or partition that it finds. Days are rolled up before their heartbeats are retired.
    when 'nightly' then array[
      'premake', 'refresh_sizes', 'plan_roll_up', 'plan_retire', 'set_temperatures', 'schedule_vacuum', 'prune', 'note_storage',
      'retry_failed_archives', 'wake_archiver'
    ]
    when 'maintain' then array['premake', 'plan_rebuild']
  end;
begin
  if v_steps is null then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a kind of maintenance', coalesce(p_kind, 'null')),
      hint = 'The kinds are nightly and maintain.';
  end if;
  if not exists (
    select from pg_trigger where tgrelid = to_regclass('fleet.hb_partitions') and tgname = 'hb_partitions_protect'
  ) then
    raise exception using
      errcode = 'FL002',
      message = 'fleet.hb_partitions has no trigger hb_partitions_protect: a restore of a dump is under way or was not completed',
      hint = 'Wait for the restore to finish. If none is running, restore the dump again into an empty database.';
  end if;
  perform fleet.not_in_future(p_now);
  if not pg_has_role(session_user, 'fleet_owner', 'member') then
    p_now := now();  -- nor do others choose a time in the past
  end if;
  if p_retention < interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('retention %s is less than 1 day: days for which devices still send heartbeats would be retired', p_retention),
      hint = 'See first what would happen: select * from fleet.nightly_plan(''60 days''); then: call fleet.nightly(null, ''60 days'');';
  end if;
  -- A lock of the session: it has to outlive the transactions of the run.
  if not pg_try_advisory_lock(v_key) then
    v_holder := (select h from fleet.lock_holders('maintenance') h);
    raise exception using
      errcode = 'FL003',
      message = format('maintenance is running already, in backend %s', v_holder),
      hint = 'Wait for it. If it is stuck: select * from fleet.force_unlock(''maintenance''); the next run goes on where it ended.';
  end if;
  begin
    -- Before any step that could act on a wrong table.
    perform fleet.relink_tables();
    v_run_id := nextval('fleet.run_id_seq');
    -- A run that was killed may have left steps; this run makes its own plan.
    delete from fleet.planned_steps;
    insert into fleet.planned_steps (run_id, position, step, retention, as_of, pid)
    select v_run_id, s.position * 1000000, s.step, p_retention, p_now, pg_backend_pid()
    from unnest(v_steps) with ordinality as s (step, position);
    perform fleet.record_event(p_kind || '.start', p_run_id => v_run_id, p_detail => session_user::text);
  exception when others or query_canceled then
    -- The session may live on in a pool, and would keep the lock.
    perform pg_advisory_unlock(v_key);
    raise;
  end;
  return v_run_id;
end
$$;

comment on function fleet.begin_run(text, interval, timestamptz) is
  'Begins a run of maintenance (nightly or maintain): takes its lock or names the session that has it, numbers the run and plans its steps.';
--! EndIncluded functions/begin_run.sql
--! Included procedures/nightly.sql
create or replace procedure fleet.nightly(
  inout p_run_id bigint default null,
  p_retention interval default null,
  p_now timestamptz default now()
)
language plpgsql
as $$
begin
  p_run_id := fleet.begin_run('nightly', p_retention, p_now);
  commit;
  call fleet.run_planned_steps(p_run_id);
  perform fleet.end_run(p_run_id);
end
$$;

comment on procedure fleet.nightly(bigint, interval, timestamptz) is
  'The night''s work, each step in its own transaction: premake, count, roll up availability, retire what is past the retention, set autovacuum by age, prune, wake the archiver. Answers its run_id for fleet.run_steps(). See first: select * from fleet.nightly_plan(). Example: call fleet.nightly();';
--! EndIncluded procedures/nightly.sql
--! Included functions/note_storage.sql
create or replace function fleet.note_storage(p_now timestamptz default now()) returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  insert into fleet.storage_daily as d (
    day, rows_online, bytes_online, bytes_archived, bytes_pushed, database_bytes, noted_at
  )
  select p_now::date, t.rows_online, t.bytes_online, t.bytes_archived,
    coalesce((select c.total from fleet.counters c where c.counter = 'archive_bytes_pushed_total'), 0),
    pg_database_size(current_database()), p_now
  from (
    select
      -- Counted once the day is over; of today's there is what the last ANALYZE found.
      coalesce(sum(coalesce(p.row_count, greatest(c.reltuples, 0)::bigint)) filter (where c.oid is not null), 0) as rows_online,
      coalesce(sum(pg_total_relation_size(c.oid)), 0) as bytes_online,
      coalesce(sum(p.archive_bytes) filter (where p.proven_at is not null), 0) as bytes_archived
    from fleet.hb_partitions p
    left join pg_class c on c.oid = fleet.table_of(p)
  ) t
  on conflict (day) do update
    set rows_online = excluded.rows_online,
      bytes_online = excluded.bytes_online,
      bytes_archived = excluded.bytes_archived,
      bytes_pushed = excluded.bytes_pushed,
      database_bytes = excluded.database_bytes,
      noted_at = excluded.noted_at
  returning d.bytes_online;
$$;

comment on function fleet.note_storage(timestamptz) is
  'Keeps today''s sizes in fleet.storage_daily; returns the bytes of the partitions online. Run by fleet.nightly().';
--! EndIncluded functions/note_storage.sql
--! Included functions/not_in_future.sql
-- Times decide what is old enough to leave. With a time in the future, a night would retire today and prune everything.
create or replace function fleet.not_in_future(p_now timestamptz) returns timestamptz
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The login decides, not the current role, because functions with the owner's rights call this.
  if p_now > clock_timestamp() and not pg_has_role(session_user, 'fleet_owner', 'member') then
    raise exception using
      errcode = 'FL422',
      message = format('%s is later than now; only the owner of the store may pass a time in the future', p_now),
      hint = 'Leave the time out, so that the database''s clock is used.';
  end if;
  return p_now;
end
$$;

comment on function fleet.not_in_future(timestamptz) is
  'Returns its argument, or raises an error if it is later than now and the login is not a member of fleet_owner. Called by each function that takes a time and is granted to other roles.';
--! EndIncluded functions/not_in_future.sql
--! Included functions/rollup_plan.sql
create or replace function fleet.rollup_plan(p_now timestamptz default now())
returns table (day date, partition_name text, state text, action text, due_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with changes as materialized (
    select c.day, sum(c.devices) as devices
    from (
      select d.enrolled_at::date as day, 1 as devices
      from fleet.devices d
      where d.revoked_at is null or d.revoked_at > d.enrolled_at
      union all
      select (d.revoked_at - interval '1 microsecond')::date + 1, -1
      from fleet.devices d
      where d.revoked_at > d.enrolled_at
    ) c
    group by c.day
  ),
  late as materialized (
    select l.day, min(l.arrived_at) as since
    from fleet.late_arrivals l
    group by l.day
  )
  select d.day, p.partition_name, p.state,
    case when r.day is not null and r.devices = n.devices then 'rebuild' else 'roll_up' end,
    case when r.devices = n.devices or n.devices = 0 then l.since else (d.day + 1)::timestamptz end
  from fleet.hb_partitions p
  join pg_class t on t.oid = fleet.table_of(p)
  cross join (select i.* from fleet.settings i where fleet.not_in_future(p_now) is not null) s
  cross join lateral (
    select g.day::date as day
    from generate_series(p.range_start, least(p.range_end, p_now) - interval '1 day', interval '1 day') as g (day)
  ) d
  cross join lateral (select coalesce(sum(c.devices), 0) as devices from changes c where c.day <= d.day) n
  left join fleet.rolled_up_days r on r.day = d.day
  left join late l on l.day = d.day
  where
    -- Not yet, or before the roster of that day became another, as by devices that were enrolled with an earlier date.
    d.day >= p_now - greatest(s.rollups_keep, s.retention) and coalesce(r.devices, 0) <> n.devices
    -- Also of a day without a roster: heartbeats from before their device was enrolled are not to wait for ever.
    or l.day is not null
  order by d.day;
$$;

comment on function fleet.rollup_plan(timestamptz) is
  'The past days to be rolled up, and those to be rebuilt for late arrivals, and since when that is due. Example: select * from fleet.rollup_plan();';
--! EndIncluded functions/rollup_plan.sql
--! Included functions/device_availability.sql
create or replace function fleet.device_availability(
  p_from date,
  p_to date,
  p_device_id bigint default null,
  p_now timestamptz default now()
) returns table (
  device_id bigint, alias text, cohort text, expected bigint, seen bigint, availability_pct numeric, longest_gap interval,
  first_ts timestamptz, last_ts timestamptz, unknown_days integer
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set work_mem = '64MB'
-- One device and all of them are asked for by the same statement, and want other plans.
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  c_raw_days_most constant integer := 7;  -- 14 million heartbeats each take seconds, and a reader has 30
  v_today date := p_now::date;
  v_since timestamptz;
  v_until timestamptz;
  v_raw_days date[];
begin
  perform fleet.not_in_future(p_now);
  if p_now is null or p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_from > p_to then
    raise exception using
      errcode = 'FL422',
      message = format('there is no availability from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give the first and the last day, in order: select * from fleet.device_availability(current_date - 30, current_date - 1);';
  end if;
  v_since := p_from::timestamptz;
  v_until := least((p_to + 1)::timestamptz, p_now);

  v_raw_days := array(
    select g.day::date
    from fleet.hb_partitions p
    join pg_class t on t.oid = fleet.table_of(p)
    cross join lateral generate_series(
      greatest(p.range_start, v_since), least(p.range_end, v_until) - interval '1 microsecond', interval '1 day'
    ) as g (day)
    where g.day >= (select min(d.enrolled_at)::date from fleet.devices d)
      and (g.day::date = v_today or not exists (select from fleet.rolled_up_days r where r.day = g.day::date))
  );
  if cardinality(v_raw_days) > c_raw_days_most and p_device_id is null then
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s days from %s to %s are not rolled up yet, and all their heartbeats would be read; at most %s at a time',
        cardinality(v_raw_days), p_from, p_to, c_raw_days_most
      ),
      hint = 'The night rolls them up; do it now by call fleet.nightly(); or ask for fewer days, or for one device.';
  end if;

  return query
    with roster as materialized (
      select d.device_id, d.alias, d.cohort, greatest(d.enrolled_at, v_since) as since, least(d.revoked_at, v_until) as until
      from fleet.devices d
      where (p_device_id is null or d.device_id = p_device_id)
        and greatest(d.enrolled_at, v_since) < least(d.revoked_at, v_until)
    ),
    late as materialized (
      select distinct l.device_id, l.day
      from fleet.late_arrivals l
      where l.day between p_from and p_to and l.day <> all (v_raw_days)
        and (p_device_id is null or l.device_id = p_device_id)
    ),
    days as (
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from fleet.device_availability_daily a
      where a.day between p_from and least(p_to, v_today - 1) and a.day <> all (v_raw_days)
        and (p_device_id is null or a.device_id = p_device_id)
        and not exists (select from late l where l.device_id = a.device_id and l.day = a.day)
      union all
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from unnest(v_raw_days) as r (day)
      cross join lateral fleet.availability_of_day(
        r.day, p_now, case when p_device_id is not null then array[p_device_id] end
      ) a
      union all
      select a.device_id, a.day, a.expected, a.seen, a.longest_gap, a.first_ts, a.last_ts
      from (select l.day, array_agg(l.device_id) as device_ids from late l group by l.day) l
      cross join lateral fleet.availability_of_day(l.day, p_now, l.device_ids) a
    ),
    runs as (  -- of known days without an unknown one between them
      select d.*, d.day - (row_number() over (partition by d.device_id order by d.day))::integer as run
      from days d
    ),
    joined as (
      select u.*, r.alias, r.cohort, r.since, r.until,
        -- A silence does not end at midnight: from the last heartbeat of the days before to the first of this one.
        coalesce(u.first_ts, least((u.day + 1)::timestamptz, r.until))
          - coalesce(max(u.last_ts) over w, greatest(coalesce(min(u.day) over w, u.day)::timestamptz, r.since)) as silence
      from runs u
      join roster r using (device_id)
      window w as (partition by u.device_id, u.run order by u.day rows between unbounded preceding and 1 preceding)
    ),
    known as (
      select j.device_id, sum(j.expected)::bigint as expected, sum(j.seen)::bigint as seen,
        max(greatest(j.longest_gap, j.silence)) as longest_gap, min(j.first_ts) as first_ts, max(j.last_ts) as last_ts,
        count(*)::integer as days
      from joined j
      group by j.device_id
    )
    select r.device_id, r.alias, r.cohort, coalesce(k.expected, 0), coalesce(k.seen, 0),
      round(100.0 * k.seen / nullif(k.expected, 0), 2), k.longest_gap, k.first_ts, k.last_ts,
      (r.until - interval '1 microsecond')::date - r.since::date + 1 - coalesce(k.days, 0)
    from roster r
    left join known k using (device_id)
    order by r.device_id;
end
$$;

comment on function fleet.device_availability(date, date, bigint, timestamptz) is
  'Availability of each device (or one) from the first to the last UTC day, both included: heartbeats expected and seen, in percent (null when none was expected), the longest silence. From the rollups; today, days not rolled up yet and late arrivals from the heartbeats. Days of which neither is there any more are not counted and given as unknown_days. Example: select alias, availability_pct, longest_gap from fleet.device_availability(current_date - 30, current_date - 1) order by availability_pct;';
--! EndIncluded functions/device_availability.sql
--! Included functions/check_partitions.sql
create or replace function fleet.check_partitions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_today date := p_now::date;
  v_ahead integer;
  v_names text;
  v_commands text;
  v_attach text;
  v_count bigint;
  v_catalog text := left(fleet_guard.seal(0), -1);  -- read once, not for each row
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  -- A table that was detached by hand keeps its rows if it is attached again, while a new partition would be empty.
  select e'-- as fleet_owner\n' || string_agg(
    format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L);', c.oid::regclass, p.range_start, p.range_end
    ),
    e'\n' order by p.range_start
  )
  into v_attach
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where p.state in ('active', 'restored') and not exists (select from pg_inherits i where i.inhrelid = c.oid);

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= p_now and a.range_end > p_now) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('no partition for %s: heartbeats are quarantined', v_today);
    remedy := coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today, v_today + v_settings.premake_days));
  end if;
  return next;

  check_name := 'partitions_ahead';
  select coalesce(min(d.day) - v_today - 1, 90) into v_ahead
  from (select v_today + n as day from generate_series(1, 90) as n) d
  where not exists (select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day);
  detail := format('%s days ahead, %s wanted', v_ahead, v_settings.premake_days);
  -- Between midnight and the hourly run there is one less.
  status := case when v_ahead >= greatest(v_settings.premake_days - 1, 1) then 'ok' when v_ahead >= 3 then 'warn' else 'fail' end;
  remedy := case
    when status <> 'ok' then
      coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today + 1, v_today + v_settings.premake_days))
  end;
  return next;

  check_name := 'partition_obstacles';
  select string_agg(c.relname, ', ' order by c.relname),
    string_agg(format('alter table fleet.%I rename to %I;', c.relname, left('stray_' || c.relname, 63)), e'\n' order by c.relname)
  into v_names, v_commands
  from pg_class c
  where c.relnamespace = 'fleet'::regnamespace
    and c.relkind not in ('i', 'I')
    and c.relname like 'device\_heartbeats\_p%'
    and not exists (select from pg_inherits i where i.inhrelid = c.oid)
    and c.oid <> all (array(select coalesce(fleet.table_of(p), 0) from fleet.hb_partitions p));
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('in the way of a partition of that name: ' || v_names, 'no name of a partition is taken');
  remedy := format(e'-- as superuser\n%s\ncall fleet.maintain();', v_commands);
  remedy := case when v_names is not null then remedy end;
  return next;

  check_name := 'partition_catalog';
  select string_agg(format('%s is %s', k.partition_name, k.fault), ', ' order by k.partition_name) into v_names
  from (
    select a.partition_name, 'attached, and not known to fleet.hb_partitions' as fault
    from fleet.attached_partitions() a
    where not exists (
      select from fleet.hb_partitions p
      where fleet.table_of(p) = a.relid and p.state in ('active', 'restored') and p.range_start = a.range_start and p.range_end = a.range_end
    )
    union all
    select p.partition_name, format('%s in fleet.hb_partitions, and not attached', p.state)
    from fleet.hb_partitions p
    join pg_class c on c.oid = fleet.table_of(p)
    where p.state in ('active', 'restored')
      and not exists (select from fleet.attached_partitions() a where a.relid = c.oid)
  ) k;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'fleet.hb_partitions says what the catalog says');
  remedy := case when v_names is not null then coalesce(v_attach, 'select fleet.sync_partitions();') end;
  return next;

  check_name := 'partition_gaps';
  select string_agg(format('%s to %s', g.gap_start::date, g.gap_end::date), ', ' order by g.gap_start),
    string_agg(
      format('select fleet.create_partitions(%L, %L);', g.gap_start::date, g.gap_end::date - 1), e'\n' order by g.gap_start
    )
  into v_names, v_commands
  from (
    select a.range_end as gap_start, lead(a.range_start) over (order by a.range_start) as gap_end
    from fleet.attached_partitions() a
  ) g
  where g.gap_end > g.gap_start
    -- Between a held or restored day and the rest, the days are in the archive.
    and g.gap_end > p_now - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'no gap between partitions');
  remedy := v_commands;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start),
    string_agg(
      case
        when p.relid_seal is distinct from v_catalog || p.relid then 'call fleet.maintain();'  -- also finds a renamed table
        when p.state in ('active', 'restored') then
          format('select fleet.create_partitions(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date)
        when p.state = 'archived' then format('select fleet.drop_partition(%L);', p.partition_name)
        else format('-- %s: its rows are in a backup of Postgres only', p.partition_name)
      end,
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  left join pg_class c on c.oid = fleet.table_of(p)
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone, undropped: ' || v_names, 'every partition that is not dropped has its table');
  remedy := e'-- makes the days again, empty; for what they held see RUNBOOK.md, "A table is gone"\n' || v_commands;
  return next;

  check_name := 'partition_oids';
  select count(*) into v_count
  from fleet.hb_partitions p
  where p.relid is not null and (p.relid_seal is distinct from v_catalog || p.relid or p.relid <> fleet.table_of(p));
  select v_count + count(*) into v_count
  from fleet.adoptions a
  where a.relid_seal is distinct from v_catalog || a.relid;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case v_count
    when 0 then 'every table is recorded by its oid in this cluster'
    else format(
      '%s tables are recorded by oids of another cluster, as after restoring a dump; they are found by name until that is fixed', v_count
    )
  end;
  remedy := case when v_count > 0 then 'call fleet.maintain();' end;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start),
    string_agg(format('alter table %s rename to %I;', c.oid::regclass, p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has the name it was made with');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it holds a row', 'there is none');
  remedy := case
    when v_names is not null then format(e'-- as fleet_owner\nalter table fleet.device_heartbeats detach partition %s;', v_names)
  end;
  return next;

  check_name := 'partition_indexes';
  with fault as (
    select a.partition_name, a.range_start,
      not coalesce(bool_or(i.indisunique and i.indisvalid), false) as lacks_key,
      not coalesce(bool_or(i.indisvalid and not i.indisunique and pg_get_indexdef(i.indexrelid) like '%(device\_id, ts DESC)'), false)
        as lacks_newest,
      string_agg(format('drop index concurrently %s;', i.indexrelid::regclass), e'\n') filter (where not i.indisvalid) as leftovers
    from fleet.attached_partitions() a
    left join pg_index i on i.indrelid = a.relid
    group by a.partition_name, a.range_start
  )
  select string_agg(f.partition_name, ', ' order by f.range_start),
    string_agg(
      concat_ws(
        e'\n',
        f.leftovers,
        -- What the key would have kept out meanwhile stands in its way now.
        case when f.lacks_key then format(
          e'delete from fleet.%1$I a using fleet.%1$I b where a.device_id = b.device_id '
          'and date_bin(''10 seconds'', a.ts, ''2000-01-01Z'') = date_bin(''10 seconds'', b.ts, ''2000-01-01Z'') '
          'and (a.received_at, a.ctid) > (b.received_at, b.ctid);'
          '\ncreate unique index concurrently on fleet.%1$I %2$s;',
          f.partition_name,
          regexp_replace(pg_get_indexdef('fleet.device_heartbeats_template_dedupe_key'::regclass), '^.* USING btree ', '')
        ) end,
        case when f.lacks_newest then format(
          e'create index if not exists device_heartbeats_device_id_ts_idx on only fleet.device_heartbeats (device_id, ts desc);'
          '\ncreate index concurrently if not exists %2$I on fleet.%1$I (device_id, ts desc);'
          '\nalter index fleet.device_heartbeats_device_id_ts_idx attach partition fleet.%2$I;',
          f.partition_name, f.partition_name || '_device_id_ts_idx'
        ) end
      ),
      e'\n' order by f.range_start
    )
  into v_names, v_commands
  from fault f
  where f.lacks_key or f.lacks_newest;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('an index is missing on ' || v_names, 'every partition has both indexes');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan(null, p_now) r
  where r.action = 'retire' and r.range_end < p_now - v_settings.retention - interval '2 days';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'nothing overdue');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'rollups';
  select string_agg(
      format('%s since %s', r.day, r.due_at),
      ', ' order by r.day
    ),
    string_agg(distinct case r.action when 'roll_up' then 'call fleet.nightly();' else 'call fleet.maintain();' end, e'\n')
  into v_names, v_commands
  from fleet.rollup_plan(p_now) r
  where r.state in ('active', 'restored')
    and r.due_at < p_now - case r.action when 'roll_up' then interval '2 days' else interval '3 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('availability not counted: ' || v_names, 'past days are rolled up, late heartbeats included');
  remedy := v_commands;
  return next;

  check_name := 'guard';
  status := 'ok'; detail := 'DROP of an unproven partition is refused'; remedy := null;
  select string_agg(g.name, ', ' order by g.name),
    string_agg(concat_ws(e'\n', case when e.evtname is null then g.definition end, format('alter event trigger %I enable always;', g.name)),
      e'\n' order by g.name)
  into v_names, v_commands
  from (
    values
      ('fleet_guard_drop', 'create event trigger fleet_guard_drop on sql_drop execute function fleet_guard.refuse_unproven_drop();'),
      (
        'fleet_guard_find',
        'create event trigger fleet_guard_find on ddl_command_start when tag in (''ALTER TABLE'', ''ALTER SCHEMA'', ''ALTER INDEX'', '
        '''ALTER VIEW'', ''ALTER MATERIALIZED VIEW'', ''ALTER SEQUENCE'', ''ALTER FOREIGN TABLE'') '
        'execute function fleet_guard.find_restored_tables();'
      )
  ) as g (name, definition)
  left join pg_event_trigger e on e.evtname = g.name
  where e.evtenabled is distinct from 'A';
  if v_names is not null then
    status := 'warn'; detail := 'event triggers that are missing or not ENABLE ALWAYS: ' || v_names;
    remedy := e'-- as superuser\n' || v_commands;
  end if;
  return next;
end
$$;

comment on function fleet.check_partitions(timestamptz) is
  'What fleet.check() says of partitions: today''s, those ahead, gaps, names, indexes, retention, rollups and the guard.';
--! EndIncluded functions/check_partitions.sql
--! Included procedures/mark_silent.sql
-- Devices become silent by time alone, so no heartbeat can mark them. Marked early, at three quarters of the time after
-- which they are offline, so that between two runs nobody is offline without the mark; what is read through the mark is
-- always compared with the clock again.
create or replace procedure fleet.mark_silent(p_max_rows integer default 50000, p_now timestamptz default now())
language plpgsql
as $$
declare
  c_batch constant integer := 5000;
  v_base interval;
  v_changes bigint;
  v_rows integer;
  v_left integer := p_max_rows;
begin
  perform fleet.end_overdue_readers();
  commit;
  select greatest(least(s.offline_after, interval '10 minutes'), interval '5 minutes'), m.changes
  into v_base, v_changes
  from fleet.settings s
  cross join fleet.silence_marks m;
  loop
    -- In device_id order, as ingest; a batch is a short transaction, because a device that comes back waits for it.
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = true
    from (
      select l.device_id
      from fleet.device_last_status l
      where not l.is_silent and l.last_ts < p_now - v_base * 0.75
        and l.last_ts < p_now - 1.5 * (select d.heartbeat_interval from fleet.devices d where d.device_id = l.device_id)
      order by l.device_id
      limit least(c_batch, v_left)
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  -- With rows left over the marks are not complete: reads go on without them, which suits a fleet that is mostly silent.
  if v_left > 0 then
    update fleet.silence_marks m
    set marked_at = p_now, base = v_base
    where m.changes = v_changes;
  end if;
  commit;

  -- Marks that no heartbeat took away: those set where nobody knew better.
  loop
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = false
    from (
      select l.device_id
      from fleet.device_last_status l
      where l.is_silent and (l.last_ts is null or l.last_ts >= p_now - interval '2 minutes')
      order by l.device_id
      limit least(c_batch, greatest(v_left, 0))
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  commit;

  perform fleet.watch_silence(p_now);
  commit;

  perform fleet.sample_fleet();
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'Sets device_last_status.is_silent for devices silent for three quarters of the time after which they are offline, so that lists of offline devices need no look at the others. Run each minute by pg_cron; if it is not, lists are as right, and slower. Also calls fleet.end_overdue_readers(), fleet.watch_silence() and fleet.sample_fleet(). Example: call fleet.mark_silent();';
--! EndIncluded procedures/mark_silent.sql
--! Included procedures/maintain.sql
create or replace procedure fleet.maintain(inout p_run_id bigint default null, p_now timestamptz default now())
language plpgsql
as $$
declare
  v_nightly bigint;
begin
  p_run_id := fleet.begin_run('maintain', null, p_now);
  commit;
  call fleet.run_planned_steps(p_run_id);
  perform fleet.end_run(p_run_id);
  commit;
  -- Postgres or pg_cron was down at three.
  if fleet.is_night_missed(p_now) then
    call fleet.nightly(v_nightly, null, p_now);
  end if;
end
$$;

comment on procedure fleet.maintain(bigint, timestamptz) is
  'Makes the partitions ahead, counts the availability of devices with late heartbeats again, and makes up for a night that was missed. Run hourly by pg_cron; safe at any time. Example: call fleet.maintain();';
--! EndIncluded procedures/maintain.sql
--! Included functions/job_definitions.sql
create or replace function fleet.job_definitions()
returns table (jobname text, schedule text, command text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    -- Half an hour away from the night, with which it shares a lock.
    ('fleet-maintain', '35 * * * *', 'call fleet.maintain()'),
    ('fleet-nightly', '0 3 * * *', 'call fleet.nightly()'),
    ('fleet-reconcile', '5 * * * *', 'select fleet.reconcile()'),
    ('fleet-mark-silent', '* * * * *', 'call fleet.mark_silent()'),
    ('fleet-archive-wake', '*/10 * * * *', 'select fleet.wake_archiver()'),
    -- That a job of each minute succeeded is of no use after two days, and job_health reads it all.
    ('fleet-prune-cron-history', '20 4 * * *',
      $job$delete from cron.job_run_details
        where end_time < now() - interval '14 days'
          or (command = 'call fleet.mark_silent()' and status = 'succeeded' and end_time < now() - interval '2 days')$job$)
  union all
  -- VACUUM cannot run in a function: a statement that names the tables, made anew by each night.
  select 'fleet-vacuum', '45 3 * * *', coalesce(
    (
      -- Not by fleet.attached_partitions(), which reads the bounds of all: job_health is polled.
      select format('vacuum (analyze) %s', string_agg(format('fleet.%I', c.relname), ', ' order by p.range_start))
      from fleet.hb_partitions p
      join pg_inherits i on i.inhrelid = fleet.table_of(p) and i.inhparent = to_regclass('fleet.device_heartbeats')
      join pg_class c on c.oid = fleet.table_of(p)
      where p.range_end > now() - interval '7 days' and p.range_start <= now()
    ),
    'vacuum (analyze) fleet.device_last_status'
  )
  union all
  select 'fleet-freeze', '15 4 * * *',
    format('vacuum (freeze, analyze) %s', string_agg(format('%I.%I', c.relnamespace::regnamespace, c.relname), ', ' order by p.range_start))
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  -- Also retired partitions, which wait for their archive or for archive_grace. cold_xid is null for a day that was retired while young.
  where (p.state in ('active', 'restored') and age(c.relfrozenxid) > age(p.cold_xid)
      or p.state not in ('active', 'restored') and age(c.relfrozenxid) > coalesce(age(p.cold_xid), 1000000))
    and pg_relation_size(c.oid) > 0
  having count(*) > 0;
$$;

comment on function fleet.job_definitions() is
  'The jobs that pg_cron has to run for the store, with their schedules in GMT. fleet-freeze is among them while a cold partition is not frozen yet.';
--! EndIncluded functions/job_definitions.sql
--! Included functions/find_day_table.sql
create or replace function fleet.find_day_table(p_day date) returns regclass
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.oid::regclass
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where p.range_start <= p_day and p.range_end > p_day;
$$;

comment on function fleet.find_day_table(date) is
  'The table that has the heartbeats of this day, attached or retired; null when there is none.';
--! EndIncluded functions/find_day_table.sql
--! Included functions/adoption_holds.sql
create or replace function fleet.adoption_holds() returns table (source text, since timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select a.source, min(d.day)::timestamptz
  from fleet.adoptions a
  join pg_class c on c.oid = fleet.source_table(a)
  join fleet.adoption_days d on d.source = a.source
  where a.state in ('moving', 'moved', 'verified', 'abandoning')
  group by a.source;
$$;

comment on function fleet.adoption_holds() is
  'Tables that are adopted and neither confirmed nor abandoned, with the first day of which they have rows: from there on no partition is retired, so that what was moved can be verified.';
--! EndIncluded functions/adoption_holds.sql
--! Included functions/release_partition.sql
create or replace function fleet.release_partition(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.held_reason is null and v_partition.state <> 'restored' then
    return format('partition %s is not held', p_partition);
  end if;
  -- A restored day becomes an active one: old enough, it is retired and proven again by the next night.
  update fleet.hb_partitions
  set held_reason = null, held_by = null, state = case state when 'restored' then 'active' else state end
  where partition_name = p_partition;
  perform fleet.record_event('partition.release', p_partition);
  return format('partition %s is released', p_partition);
end
$$;

comment on function fleet.release_partition(text) is
  'Ends a hold, or the stay of a restored day. Example: select fleet.release_partition(partition_name) from fleet.partition_health where held_reason = ''legal hold'';';
--! EndIncluded functions/release_partition.sql
--! Included functions/retention_plan.sql
create or replace function fleet.retention_plan(p_retention interval default null, p_now timestamptz default now())
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, state text, row_count bigint, bytes_size bigint,
  action text, reason text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p.partition_name, p.range_start, p.range_end, p.state,
    coalesce(p.row_count, greatest(c.reltuples, 0)::bigint),
    pg_total_relation_size(c.oid),
    case
      when p.range_end > p_now - r.retention then 'keep'
      when p.held_reason is not null or p.state = 'restored' or h.source is not null then 'hold'
      else 'retire'
    end,
    case
      when p.range_end > p_now - r.retention and p.range_start > p_now then 'made ahead'
      when p.range_end > p_now - r.retention then format('not wholly older than %s', r.retention)
      when p.held_reason is not null then format('held: %s', p.held_reason)
      when h.source is not null then format('%s is being adopted; confirm or abandon that', h.source)
      when p.state = 'restored' then 'restored from the archive; release it with fleet.release_partition()'
      else format('all of it is older than %s', r.retention)
    end
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  cross join (
    select coalesce(p_retention, s.retention) as retention
    from fleet.settings s
    where fleet.not_in_future(p_now) is not null
  ) r
  left join lateral (
    select min(o.source) as source from fleet.adoption_holds() o where o.since < p.range_end
  ) h on true
  where p.state in ('active', 'restored')
  order by p.range_start;
$$;

comment on function fleet.retention_plan(interval, timestamptz) is
  'What a retention would do, partition by partition, and why; changes nothing. Example: select * from fleet.retention_plan(''60 days'') where action = ''retire'';';
--! EndIncluded functions/retention_plan.sql
--! Included functions/refresh_sizes.sql
create or replace function fleet.refresh_sizes(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition record;
  v_rows bigint;
  v_count integer := 0;
begin
  update fleet.hb_partitions p
  set bytes_size = s.bytes
  from (
    select q.partition_name, pg_total_relation_size(fleet.table_of(q)) as bytes
    from fleet.hb_partitions q
    where q.state in ('active', 'restored') and q.relid is not null
  ) s
  where s.partition_name = p.partition_name and p.bytes_size is distinct from s.bytes;

  -- Exact, once the day is over; not again once it cannot grow, and not where the count is that of an archive.
  for v_partition in
    select p.partition_name
    from fleet.hb_partitions p
    where p.state = 'active' and p.relid is not null and p.range_end <= p_now and p.archive_url is null
      and (p.row_count is null or p.range_end > p_now - (select max_late from fleet.settings))
    order by p.range_start
  loop
    execute format('select count(*) from fleet.%I', v_partition.partition_name) into v_rows;
    update fleet.hb_partitions
    set row_count = v_rows
    where partition_name = v_partition.partition_name and row_count is distinct from v_rows;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.refresh_sizes(timestamptz) is
  'Refreshes row counts of past partitions that can still change, and sizes of all; returns how many were counted. Run by fleet.nightly().';
--! EndIncluded functions/refresh_sizes.sql
--! Included functions/scheduler_ages.sql
-- Not by fleet.job_history(), which reads the whole history for the last success of each job: too much for a scrape.
create or replace function fleet.scheduler_ages()
returns table (jobname text, age interval)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_setup timestamptz := (select min(p.created_at) from fleet.hb_partitions p);
  v_known text[] := array[]::text[];
begin
  if exists (select from pg_extension where extname = 'pg_cron') then
    for jobname, age in execute $jobs$
      select j.jobname, now() - greatest(d.start_time, fleet.postgres_started_at())
      from cron.job j
      cross join lateral (select h.start_time from cron.job_run_details h where h.jobid = j.jobid order by h.runid desc limit 1) d
      where j.jobname like 'fleet-%' and j.username = current_user and d.start_time is not null
    $jobs$ loop
      v_known := v_known || jobname;
      return next;
    end loop;
  end if;
  -- Where pg_cron works in another database, lost a job or its history: by what the jobs leave here. These have been there from
  -- the beginning, so that one that never ran is as old as the store.
  return query
    select w.jobname, now() - coalesce(
      case when l.at is not null then greatest(l.at, fleet.postgres_started_at()) end,
      v_setup
    )
    from (
      values
        ('fleet-maintain', 'maintain.start'), ('fleet-nightly', 'nightly.start'), ('fleet-reconcile', 'reconciliation.completed')
    ) as w (jobname, event)
    cross join lateral (select max(e.at) as at from fleet.events e where e.event = w.event) l
    where w.jobname <> all (v_known);
end
$$;

comment on function fleet.scheduler_ages() is
  'How long ago each job of the store began, or Postgres started if that was later; maintain, nightly and reconcile since setup while they never have. For /metrics.';
--! EndIncluded functions/scheduler_ages.sql
--! Included functions/metric_definitions.sql
create or replace function fleet.metric_definitions()
returns table (metric text, type text, unit text, help text)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  values
    ('partitions_created_total', 'counter', 'partitions', 'Partitions of heartbeats that were made'),
    ('partition_create_failures_total', 'counter', 'runs', 'Runs of maintenance that could not make partitions ahead'),
    ('partitions_archived_total', 'counter', 'partitions', 'Partitions whose archive was read back and proven'),
    ('hb_partition_archived_total', 'counter', 'partitions', 'The same as partitions_archived_total'),
    ('hb_partition_dropped_total', 'counter', 'partitions', 'Partitions dropped after their archive was proven'),
    ('archive_failures_total', 'counter', 'tries', 'Tries to archive a partition that failed'),
    ('archive_bytes_pushed_total', 'counter', 'bytes', 'Size of the Parquet files that were written to the archive'),
    ('reconciliation_rows_updated_total', 'counter', 'devices', 'Devices whose last status was behind their heartbeats and was healed'),
    ('partition_premake_runway_days', 'gauge', 'days', 'Time for which partitions are made ahead'),
    ('retention_lag_days', 'gauge', 'days', 'How long the oldest partition has been past its retention and is still online; days that are held do not count'),
    ('archive_backlog_partitions', 'gauge', 'partitions', 'Partitions that are retired and not yet archived'),
    ('archiver_heartbeat_age_seconds', 'gauge', 'seconds', 'Time since an archiver was last heard of'),
    ('scheduler_last_run_age_seconds', 'gauge', 'seconds', 'Time since the job last began, or since Postgres started if that was later; of maintain, nightly and reconcile since setup while they never have'),
    ('partitions', 'gauge', 'partitions', 'Partitions by state'),
    ('partition_rows', 'gauge', 'heartbeats', 'Heartbeats by state of their partition, as counted in the night'),
    ('partition_bytes', 'gauge', 'bytes', 'Size on disk by state of the partition, as measured in the night'),
    ('archive_bytes', 'gauge', 'bytes', 'Size of the proven archives'),
    ('cohort_devices', 'gauge', 'devices', 'Devices on the roster; cohort (all) is the whole fleet'),
    ('cohort_active_devices', 'gauge', 'devices', 'Devices that were heard of lately, as fleet.fleet_silence counts them'),
    ('cohort_gone_quiet_devices', 'gauge', 'devices', 'Those of them that have gone quiet'),
    ('cohort_gone_quiet_ratio', 'gauge', 'ratio', 'Their share'),
    ('cohort_usual_quiet_ratio', 'gauge', 'ratio', 'The share that is usual at this time of day'),
    ('cohort_silence_alarm', 'gauge', 'flag', '1 while many more have gone quiet than usual, else 0'),
    ('cohort_silence_muted', 'gauge', 'flag', '1 while that cannot be judged, else 0'),
    ('slo_good', 'gauge', 'tries', 'What succeeded in the period of the error budget'),
    ('slo_bad', 'gauge', 'tries', 'What failed in the period of the error budget'),
    ('slo_target_ratio', 'gauge', 'ratio', 'Share that may fail'),
    ('slo_error_ratio', 'gauge', 'ratio', 'Share that failed in the period of the error budget'),
    ('slo_budget_left_ratio', 'gauge', 'ratio', 'What is left of the error budget: 1 all, 0 nothing, below 0 overspent'),
    ('postgres_connections', 'gauge', 'connections', 'Connections to Postgres by what they do'),
    ('postgres_connections_max', 'gauge', 'connections', 'Connections that Postgres takes of others than superusers'),
    ('postgres_transactions_total', 'counter', 'transactions', 'Transactions in this database since its statistics were reset'),
    ('postgres_blocks_total', 'counter', 'blocks', 'Blocks of this database that were found in shared buffers, or read from the operating system'),
    ('postgres_longest_transaction_seconds', 'gauge', 'seconds', 'Age of the oldest transaction of a client in this database'),
    ('postgres_dead_rows', 'gauge', 'rows', 'Dead rows that autovacuum has not removed yet'),
    ('postgres_replica_bytes_behind', 'gauge', 'bytes', 'WAL that a replica has not replayed yet');
$$;

comment on function fleet.metric_definitions() is
  'What each metric of fleet.metric_values() and fleet.silence_metrics() is: its type for Prometheus, its unit and a sentence. Example: select * from fleet.metric_definitions();';
--! EndIncluded functions/metric_definitions.sql
--! Included functions/metric_values.sql
create or replace function fleet.metric_values()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.counter, '{}'::jsonb, c.total::double precision
  from fleet.counters c
  union all
  select 'partition_premake_runway_days', '{}',
    greatest(0, extract(epoch from coalesce(max(p.range_end), now()) - now()) / 86400)::double precision
  from fleet.hb_partitions p
  where p.relid is not null and exists (
    select from pg_inherits i where i.inhrelid = fleet.table_of(p) and i.inhparent = 'fleet.device_heartbeats'::regclass
  )
  union all
  select 'retention_lag_days', '{}',
    greatest(0, coalesce(max(extract(epoch from now() - s.retention - p.range_end)), 0) / 86400)::double precision
  from fleet.settings s
  left join fleet.hb_partitions p on p.state = 'active' and p.held_reason is null
    and p.range_end <= coalesce((select min(h.since) from fleet.adoption_holds() h), 'infinity')
  union all
  select 'archive_backlog_partitions', '{}', count(*)::double precision
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving', 'archive_failed')
  union all
  select 'archiver_heartbeat_age_seconds', '{}', extract(epoch from now() - max(a.last_seen_at))::double precision
  from fleet.archivers a
  having count(*) > 0
  union all
  select 'scheduler_last_run_age_seconds', jsonb_build_object('job', g.jobname), greatest(0, extract(epoch from g.age))::double precision
  from fleet.scheduler_ages() g
  union all
  select v.metric, jsonb_build_object('state', s.state), v.value
  from (
    select p.state, count(*)::double precision as partitions,
      coalesce(sum(p.row_count), 0)::double precision as rows,
      coalesce(sum(p.bytes_size) filter (where p.relid is not null), 0)::double precision as bytes
    from fleet.hb_partitions p
    group by p.state
  ) s
  cross join lateral (
    values ('partitions', s.partitions), ('partition_rows', s.rows), ('partition_bytes', s.bytes)
  ) as v (metric, value)
  union all
  select 'archive_bytes', '{}', coalesce(sum(p.archive_bytes), 0)::double precision
  from fleet.hb_partitions p
  where p.proven_at is not null
  union all
  select v.metric, jsonb_build_object('slo', s.slo), v.value::double precision
  from fleet.slo s
  cross join lateral (
    values
      ('slo_good', s.good::numeric), ('slo_bad', s.bad::numeric), ('slo_target_ratio', s.target),
      ('slo_error_ratio', s.ratio), ('slo_budget_left_ratio', s.budget_left)
  ) as v (metric, value)
  where v.value is not null
  union all
  select m.metric, m.labels, m.value
  from fleet.postgres_metrics() m;
$$;

comment on function fleet.metric_values() is
  'The metrics that live in the database, for /metrics: totals, ages and error budgets. One row a metric and label set; fleet.metric_definitions() says what each is.';
--! EndIncluded functions/metric_values.sql
--! Included functions/claim_partition.sql
create or replace function fleet.claim_partition(p_worker text, p_lease interval default '5 minutes')
returns table (
  partition_name text, relid oid, table_name text, range_start timestamptz, range_end timestamptz, state text, step text,
  attempts integer, row_count bigint, content_checksum numeric, checksum_sha256 text, archive_url text,
  archive_bytes bigint, min_ts timestamptz, max_ts timestamptz
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_name text;
begin
  select p.partition_name into v_name
  from fleet.hb_partitions p
  cross join fleet.settings s
  where p.held_reason is null
    and (p.lease_until is null or p.lease_until < now())
    and (
      p.state in ('detached', 'archiving')
      or (p.state = 'archive_failed' and p.next_attempt_at <= now())
      or (p.state = 'archived' and p.proven_at + s.archive_grace <= now() and (s.proofs_needed = 1 or p.confirmed_at is not null))
    )
  order by p.range_start
  limit 1
  for update of p skip locked;
  if not found then
    return;
  end if;

  update fleet.hb_partitions p
  set state = case p.state when 'archived' then 'archived' else 'archiving' end,
    step = coalesce(p.step, 'claimed'),
    lease_owner = p_worker,
    lease_until = now() + p_lease
  where p.partition_name = v_name;
  perform fleet.record_event('partition.archive.start', v_name, p_detail => p_worker)
  from fleet.hb_partitions p
  where p.partition_name = v_name and p.state = 'archiving';

  return query
    select p.partition_name, fleet.table_of(p), format('fleet_detached.%I', p.partition_name), p.range_start, p.range_end, p.state,
      p.step, p.attempts, p.row_count, p.content_checksum, p.checksum_sha256, p.archive_url, p.archive_bytes, p.min_ts,
      p.max_ts
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_partition(text, interval) is
  'Leases the oldest partition that waits to be archived or dropped to this archiver; no row when there is none.';
--! EndIncluded functions/claim_partition.sql
--! Included functions/bind_range.sql
create or replace function fleet.bind_range(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table oid;
  v_constraint text := 'device_heartbeats_within_range';
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s is %s, but its table is missing', p_partition, v_partition.state),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if not exists (
    select from pg_constraint where conrelid = v_table and conname = v_constraint and convalidated
  ) then
    execute format(
      'alter table %s drop constraint if exists %I, add constraint %2$I check (ts >= %L and ts < %L)',
      v_table::regclass, v_constraint, v_partition.range_start, v_partition.range_end
    );
  end if;
end
$$;

comment on function fleet.bind_range(text) is
  'Gives a partition a CHECK constraint equal to its bounds, so that attaching it again needs no scan.';
--! EndIncluded functions/bind_range.sql
--! Included functions/retire_partition.sql
-- pg_partman detaches by age alone. What is older and attached (held, restored and late days) is set aside and put back in
-- the same transaction, under the parent's lock that the detach takes anyway; its CHECK constraint makes putting it back
-- a matter of the catalog.
create or replace function fleet.retire_partition(p_partition text, p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_kept record;
  v_table oid;
  v_aside oid[];
  v_starts timestamptz[];
  v_ends timestamptz[];
  v_rows bigint;
  v_bytes bigint;
  v_source text;
  v_since timestamptz := clock_timestamp();
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'active' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s, not active, and cannot be retired', p_partition, v_partition.state),
      hint = case v_partition.state
        when 'restored' then format('Release it first: select fleet.release_partition(%L);', p_partition)
        else 'It is retired already; see select * from fleet.partition_health.'
      end;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and cannot be retired', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  v_source := (select min(h.source) from fleet.adoption_holds() h where h.since < v_partition.range_end);
  if v_source is not null then
    raise exception using
      errcode = 'FL002',
      message = format('rows of %s are being moved into partition %s, which cannot be retired yet', v_source, p_partition),
      hint = format('See select * from fleet.adoption_progress; and then: select fleet.confirm_adoption(%L);', v_source);
  end if;
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s is active, but its table is missing; there is nothing to retire', p_partition),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if v_partition.range_end > p_now then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s ends at %s and may still receive heartbeats', p_partition, v_partition.range_end),
      hint = 'Only a partition that is wholly past can be retired.';
  end if;

  -- Counts first, detach last: the parent is locked for the catalog change only.
  execute format('select count(*) from fleet.%I', p_partition) into v_rows;
  v_bytes := pg_total_relation_size(v_table);

  -- Locked before looking, so that no restore attaches an older day in between that pg_partman would retire as well. LOCK TABLE takes
  -- the right to write, which the owner does not have; this statement changes nothing and takes the same lock.
  alter table only fleet.device_heartbeats disable row level security;
  -- From here on the partition keeps the columns it has.
  perform fleet.note_columns();
  select array_agg(a.relid), array_agg(a.range_start), array_agg(a.range_end) into v_aside, v_starts, v_ends
  from fleet.attached_partitions() a
  where a.range_start < v_partition.range_start;
  for v_kept in select a.relid from unnest(v_aside) as a (relid) loop
    execute format('alter table fleet.device_heartbeats detach partition %s', v_kept.relid::regclass);
  end loop;

  perform partman.drop_partition_time(
    p_parent_table => 'fleet.device_heartbeats',
    p_retention => interval '0',
    p_keep_table => true,
    p_keep_index => true,
    p_retention_schema => 'fleet_detached',
    p_reference_timestamp => v_partition.range_end + interval '1 microsecond'
  );

  for v_kept in select a.relid, a.range_start, a.range_end from unnest(v_aside, v_starts, v_ends) as a (relid, range_start, range_end) loop
    execute format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
      v_kept.relid::regclass, v_kept.range_start, v_kept.range_end
    );
  end loop;

  if to_regclass(format('fleet_detached.%I', p_partition)) is distinct from v_table::regclass then
    raise exception using
      errcode = 'FL002',
      message = format('pg_partman did not retire partition %s', p_partition),
      hint = 'Another maintenance run of pg_partman may hold its lock; try again in a moment.';
  end if;
  perform fleet.make_read_only(p_partition);

  update fleet.hb_partitions
  set state = 'detached', step = null, counted = null, detached_at = clock_timestamp(), bytes_size = v_bytes,
    -- Of a day that was archived before, the count is the archive's until the next export.
    row_count = case when archive_url is null then v_rows else row_count end,
    attempts = 0, next_attempt_at = now(), last_error = null
  where partition_name = p_partition;
  perform fleet.record_event('partition.detach', p_partition, v_rows, fleet.elapsed_ms(v_since));
  return v_rows;
end
$$;

comment on function fleet.retire_partition(text, timestamptz) is
  'Counts a past partition, has pg_partman detach it into fleet_detached, and leaves it to the archiver. Returns its rows. Run by fleet.nightly() and fleet.archive_partition().';
--! EndIncluded functions/retire_partition.sql
--! Included functions/adopt_archive.sql
-- For a store that is made anew beside an archive that outlived the former one.
create or replace function fleet.adopt_archive(
  p_partition text,
  p_range_start timestamptz,
  p_range_end timestamptz,
  p_row_count bigint,
  p_content_checksum numeric,
  p_min_ts timestamptz,
  p_max_ts timestamptz,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_columns jsonb default null,
  p_columns_at timestamptz default null,
  p_checksum_version integer default 1,
  p_manifest_format integer default 1
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known fleet.hb_partitions;
  v_table regclass;
  v_has_rows boolean := false;
begin
  perform fleet.check_archive_place(p_range_start, p_range_end, p_archive_url);
  perform fleet.require_forms(p_partition, p_columns);
  perform fleet.note_columns();
  select * into v_known
  from fleet.hb_partitions p
  where (p.range_start < p_range_end and p.range_end > p_range_start) or p.partition_name = p_partition
  order by p.partition_name = p_partition desc
  limit 1
  for update;
  if v_known.checksum_sha256 = p_checksum_sha256 and v_known.archive_url = p_archive_url then
    return false;
  end if;

  -- A store that was just made has empty partitions for the days of the retention.
  if v_known.partition_name = p_partition and v_known.state = 'active' and fleet.table_of(v_known) is not null and p_range_end <= now()
    and (v_known.range_start, v_known.range_end) = (p_range_start, p_range_end) then
    v_table := fleet.table_of(v_known);
    -- Takes the same lock as LOCK TABLE, for which the owner would need the right to write.
    execute format('alter table %s disable row level security', v_table);
    execute format('select exists (select from %s)', v_table) into v_has_rows;
    if not v_has_rows then
      update fleet.hb_partitions set is_proven_empty = true where partition_name = p_partition;
      execute format('drop table %s', v_table);
      update fleet.hb_partitions
      set state = 'dropped', relid = null, dropped_at = now(), bytes_size = 0, row_count = 0
      where partition_name = p_partition
      returning * into v_known;
    end if;
  end if;

  if v_known.partition_name is not null and not (
    v_known.partition_name = p_partition and v_known.state = 'dropped' and v_known.row_count = 0
  ) then
    raise exception using
      errcode = 'FL409',
      message = format(
        'the archive of %s is not adopted: the store has partition %s, which is %s%s',
        p_partition, v_known.partition_name, v_known.state, case when v_has_rows then ' and holds rows' else '' end
      ),
      hint = format('See select * from fleet.partition_health where partition_name = %L;', v_known.partition_name);
  end if;

  insert into fleet.hb_partitions (
    partition_name, range_start, range_end, state, step, row_count, bytes_size, min_ts, max_ts, checksum_sha256, content_checksum,
    archive_url, archive_bytes, archived_at, proven_at, dropped_at, columns, columns_at, checksum_version, manifest_format
  ) values (
    p_partition, p_range_start, p_range_end, 'dropped', 'proven', p_row_count, 0, p_min_ts, p_max_ts, p_checksum_sha256,
    p_content_checksum, p_archive_url, p_archive_bytes, now(), now(), now(), p_columns, p_columns_at, p_checksum_version, p_manifest_format
  )
  on conflict (partition_name) do update
    set state = excluded.state, step = excluded.step, row_count = excluded.row_count, min_ts = excluded.min_ts,
      max_ts = excluded.max_ts, checksum_sha256 = excluded.checksum_sha256, content_checksum = excluded.content_checksum,
      archive_url = excluded.archive_url, archive_bytes = excluded.archive_bytes, archived_at = excluded.archived_at,
      proven_at = excluded.proven_at, is_proven_empty = false, last_error = null,
      columns = excluded.columns, columns_at = excluded.columns_at, checksum_version = excluded.checksum_version,
      manifest_format = excluded.manifest_format;
  perform fleet.record_event('partition.adopt', p_partition, p_row_count, p_detail => p_archive_url);
  return true;
end
$$;

comment on function fleet.adopt_archive(text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer, integer) is
  'Makes an archive known to a store that did not write it, once the archiver has read it back and proven it; false when it was known. Used by: npm run archive -- adopt.';
--! EndIncluded functions/adopt_archive.sql
--! Included functions/compare_with_archive.sql
-- Call it before locking the partition's row: the checksum of a large day takes many seconds, and the archiver renews its lease there.
create or replace function fleet.compare_with_archive(p_partition text)
returns table (table_oid oid, row_count bigint, content_checksum numeric, differs boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_partition fleet.hb_partitions;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL002',
      message = format('this transaction is %s and would not see rows that were written since it began', current_setting('transaction_isolation')),
      hint = 'Call it in a read committed transaction of its own.';
  end if;
  perform fleet.relink_tables();  -- before a table that is not found counts as gone
  select * into v_partition from fleet.hb_partitions p where p.partition_name = p_partition;
  table_oid := fleet.table_of(v_partition);
  if table_oid is null then
    return;
  end if;
  -- LOCK TABLE takes the right to write, which nobody has here. This statement changes nothing and blocks writers, but not readers,
  -- until the end of the transaction.
  execute format('alter table %s disable trigger user', table_oid::regclass);
  if v_partition.rows_hash is not null then
    execute format('select count(*) from only %s', table_oid::regclass) into row_count;
    if row_count = v_partition.row_count and fleet.rows_hash(table_oid) = v_partition.rows_hash then
      content_checksum := v_partition.content_checksum;
      differs := false;
      return next;
      return;
    end if;
  end if;
  -- Without a hash, or with another one, the slow comparison decides: after a dump was restored the same rows may hash differently.
  select c.row_count, c.content_checksum into row_count, content_checksum
  from fleet.content_checksum(table_oid, v_partition.columns, coalesce(v_partition.checksum_version, 1)) c;
  -- A partition that was proven to be empty has no archive.
  differs := (row_count, content_checksum)
    is distinct from (coalesce(v_partition.row_count, 0), coalesce(v_partition.content_checksum, 0));
  return next;
end
$$;

comment on function fleet.compare_with_archive(text) is
  'Compares the rows of a retired table with the count and checksum of its archive, and blocks writers to the table until the end of the transaction. Returns no row if there is no table.';
--! EndIncluded functions/compare_with_archive.sql
--! Included functions/drop_retired.sql
create or replace function fleet.drop_retired(p_partition text, p_table oid, p_since timestamptz) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_left oid;
begin
  if p_table is not null then
    execute format('drop table %s', p_table::regclass);
  end if;
  v_partition := fleet.get_partition(p_partition);
  -- A table that still has the name is not the one that was compared.
  v_left := fleet.table_of(v_partition);
  if v_left is not null then
    raise exception using
      errcode = 'FL002',
      message = format('table %s appeared while partition %s was being dropped', v_left::regclass, p_partition),
      hint = format('Look at that table, then call again: select fleet.drop_partition(%L);', p_partition);
  end if;

  update fleet.hb_partitions
  set state = 'dropped', relid = null, dropped_at = now(), lease_owner = null, lease_until = null, bytes_size = 0, last_error = null
  where partition_name = p_partition;
  if p_table is null then
    perform fleet.record_event(
      'partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(p_since), 'the table was gone already; nothing was compared'
    );
  else
    perform fleet.count_up('hb_partition_dropped_total');
    perform fleet.record_event('partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(p_since));
  end if;
end
$$;

comment on function fleet.drop_retired(text, oid, timestamptz) is
  'Drops the table of a partition after it was compared with its archive, and records that. Called by fleet.drop_partition() and fleet.accept_archive().';
--! EndIncluded functions/drop_retired.sql
--! Included functions/drop_partition.sql
create or replace function fleet.drop_partition(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_found record;
  v_settings fleet.settings;
  v_since timestamptz := clock_timestamp();
begin
  select * into strict v_settings from fleet.settings;
  -- Two passes: the row is locked only after the long comparison, and must still allow the drop then.
  for v_try in 1..2 loop
    if v_try = 1 then
      select * into v_partition from fleet.hb_partitions where partition_name = p_partition;
      if not found then
        v_partition := fleet.get_partition(p_partition);  -- raises the error
      end if;
    else
      v_partition := fleet.get_partition(p_partition);
    end if;
    if v_partition.state = 'dropped' then
      return true;
    end if;
    if v_partition.held_reason is not null then
      raise exception using
        errcode = 'FL002',
        message = format('partition %s is held (%s) and is not dropped', p_partition, v_partition.held_reason),
        hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
    end if;
    if v_partition.state <> 'archived' then
      raise exception using
        errcode = 'FL001',
        message = format('partition %s is %s and has no proven archive; it is not dropped', p_partition, v_partition.state),
        hint = format('Run select fleet.archive_partition(%L); and wait for state archived.', p_partition);
    end if;
    if now() < v_partition.proven_at + v_settings.archive_grace
      or v_settings.proofs_needed > 1 and v_partition.confirmed_at is null then
      return false;
    end if;
    continue when v_try = 2;

    -- Usually done before the export; this covers days that were being archived when rollups were introduced.
    perform fleet.finish_rollups(p_partition);
    select * into v_found from fleet.compare_with_archive(p_partition);
  end loop;

  if v_found.table_oid is not null and (v_found.row_count, v_found.content_checksum)
    is distinct from (coalesce(v_partition.row_count, 0), coalesce(v_partition.content_checksum, 0)) then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s differs from its archive and is not dropped: it has %s rows and its archive %s; the content checksums are %s and %s',
        p_partition, v_found.row_count, v_partition.row_count, v_found.content_checksum, v_partition.content_checksum
      ),
      detail = 'Only a superuser can have written to it after the proof.',
      hint = format(
        'If the table is right: select fleet.retry_archive(%1$L); if the archive is: select fleet.accept_archive(%1$L, ''why'');', p_partition
      );
  end if;

  perform fleet.drop_retired(p_partition, v_found.table_oid, v_since);
  return true;
end
$$;

comment on function fleet.drop_partition(text) is
  'Drops a retired partition whose archive is proven, after comparing its rows with the archive; refuses any other. Returns true when the table is gone, false during archive_grace or while a second proof is missing (settings.proofs_needed). Example: select partition_name, fleet.drop_partition(partition_name) from fleet.partition_health where state = ''archived'';';
--! EndIncluded functions/drop_partition.sql
--! Included functions/retry_archive.sql
create or replace function fleet.retry_archive(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_found record;
begin
  -- This takes many seconds for a large day, so it happens before the partition's row is locked.
  select * into v_found
  from fleet.hb_partitions p
  cross join lateral fleet.compare_with_archive(p.partition_name)
  where p.partition_name = p_partition and p.state = 'archived';
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state in ('active', 'restored') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; there is no failed archive to retry', p_partition, v_partition.state),
      hint = format('To archive it: select fleet.archive_partition(%L);', p_partition);
  end if;
  if v_partition.state = 'archived' and v_found.differs then
    -- As with a restored day, what is known about the archive is kept until the next export.
    update fleet.hb_partitions
    set state = 'detached', step = null, attempts = 0, next_attempt_at = now(), last_error = null, lease_owner = null, lease_until = null
    where partition_name = p_partition;
    perform fleet.record_event(
      'partition.archive.again', p_partition, v_found.row_count,
      p_detail => format('by %s: the table differs from its archive, which has %s rows', session_user, v_partition.row_count)
    );
    perform pg_notify('fleet_archiver', p_partition);
    return format('partition %s differs from its archive and waits for the archiver', p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is %s already', p_partition, v_partition.state);
  end if;
  update fleet.hb_partitions
  set attempts = 0, next_attempt_at = now()
  where partition_name = p_partition and state = 'archive_failed';
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s waits for the archiver', p_partition);
end
$$;

comment on function fleet.retry_archive(text) is
  'Lets the archiver retry a failed partition at once, or archive a partition again whose table was changed after its proof. Example: select fleet.retry_archive(partition_name) from fleet.partition_health where state = ''archive_failed'';';
--! EndIncluded functions/retry_archive.sql
--! Included functions/accept_archive.sql
create or replace function fleet.accept_archive(p_partition text, p_reason text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_found record;
  v_since timestamptz := clock_timestamp();
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format('partition %s is not dropped: a reason for keeping only its archive is needed', coalesce(p_partition, 'null')),
      hint = format('Example: select fleet.accept_archive(%L, ''changed by mistake, case 4711'');', p_partition);
  end if;
  -- This takes many seconds for a large day, so it happens before the partition's row is locked.
  select * into v_found
  from fleet.hb_partitions p
  cross join lateral fleet.compare_with_archive(p.partition_name)
  where p.partition_name = p_partition and p.state in ('detached', 'archive_failed', 'archived');

  v_partition := fleet.get_partition(p_partition);
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and is not dropped', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if v_found.table_oid is null or v_partition.state not in ('detached', 'archive_failed', 'archived') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s, and there is no retired table to compare with its archive', p_partition, v_partition.state),
      hint = format('See select * from fleet.partition_health where partition_name = %L;', p_partition);
  end if;
  if v_partition.proven_at is null or v_partition.checksum_sha256 is null or v_partition.archive_url is null then
    raise exception using
      errcode = 'FL001',
      message = format('partition %s is %s and has no proven archive; it is not dropped', p_partition, v_partition.state),
      hint = format('Run select fleet.archive_partition(%L); and wait for state archived.', p_partition);
  end if;
  if v_partition.confirmed_at is null and (select s.proofs_needed from fleet.settings s) > 1 then
    raise exception using
      errcode = 'FL001',
      message = format('the archive of partition %s is not confirmed by a second login; the partition is not dropped', p_partition),
      hint = 'In a shell, with VERIFIER_DATABASE_URL: npm run archive -- confirm. It confirms partitions in state archived.';
  end if;
  if not v_found.differs and v_partition.state = 'archived' then
    return format('partition %s is the same as its archive; there is nothing to accept', p_partition);
  end if;

  perform fleet.record_event(
    'partition.archive.accept', p_partition, v_found.row_count,
    p_detail => format(
      'by %s: %s. Dropped: %s rows of checksum %s. Archive: %s rows of checksum %s, %s', session_user, p_reason, v_found.row_count,
      v_found.content_checksum, v_partition.row_count, v_partition.content_checksum, v_partition.archive_url
    )
  );
  update fleet.hb_partitions
  set state = 'archived', step = 'proven', attempts = 0, next_attempt_at = null
  where partition_name = p_partition;
  perform fleet.drop_retired(p_partition, v_found.table_oid, v_since);
  return format('partition %s is dropped; its archive is kept as the right copy', p_partition);
end
$$;

comment on function fleet.accept_archive(text, text) is
  'Drops a retired table although it differs from its proven archive, because the archive is right. fleet.events keeps who did so, why, and what was dropped. Run npm run archive -- verify first. If the table is right instead, call fleet.retry_archive(). Example: select fleet.accept_archive(''device_heartbeats_p2026_08_15'', ''changed by mistake'');';
--! EndIncluded functions/accept_archive.sql
--! Included functions/check_archive.sql
create or replace function fleet.check_archive(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_age interval;
  v_silence interval;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  select p_now - max(a.last_seen_at) into v_silence from fleet.archivers a;

  check_name := 'archive_failed';
  select string_agg(format('%s: %s', p.partition_name, p.last_error), '; ' order by p.range_start),
    string_agg(format('select fleet.retry_archive(%L);', p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  where p.state = 'archive_failed';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'none');
  remedy := e'-- once its cause is mended\n' || v_commands;
  return next;

  check_name := 'archive_backlog';
  select count(*), p_now - min(p.detached_at) into v_count, v_age
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving') and p.held_reason is null;
  status := case when v_count = 0 or v_age < interval '6 hours' then 'ok' when v_age < interval '2 days' then 'warn' else 'fail' end;
  detail := format('%s partitions wait%s', v_count, ', the oldest for ' || date_trunc('second', v_age));
  remedy := case
    when status = 'ok' then null
    when v_silence < interval '5 minutes' then 'select fleet.wake_archiver();'
    else e'# in a shell\nnpm run archiver -- --once'
  end;
  return next;

  check_name := 'archive_undropped';
  select string_agg(p.partition_name || coalesce(': ' || p.last_error, ''), ', ' order by p.range_start),
    string_agg(
      case
        -- Only a human can tell which of the two is right.
        when p.last_error like '%differs from its archive%' then format(
          e'-- the table is right:\nselect fleet.retry_archive(%1$L);\n-- or the archive is:\n-- select fleet.accept_archive(%1$L, ''why'');',
          p.partition_name
        )
        else format('select fleet.drop_partition(%L);', p.partition_name)
      end, e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and (v_settings.proofs_needed = 1 or p.confirmed_at is not null)
    and p.proven_at + v_settings.archive_grace
      < p_now - case when p.last_error like '%differs from its archive%' then interval '0' else interval '6 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('archived, and still on disk: ' || v_names, 'what is archived is dropped');
  remedy := v_commands;
  return next;

  check_name := 'archive_unconfirmed';
  select string_agg(p.partition_name, ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and v_settings.proofs_needed > 1 and p.confirmed_at is null
    and p.proven_at < p_now - interval '1 day';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('archived but not confirmed by a second login: ' || v_names, 'no archive is waiting for a second login to confirm it');
  remedy := case when v_names is not null then e'# in a shell, with VERIFIER_DATABASE_URL\nnpm run archive -- confirm' end;
  return next;

  check_name := 'archiver';
  status := case when v_silence < interval '5 minutes' then 'ok' when v_silence is null then 'warn' else 'fail' end;
  detail := coalesce('last heard of ' || date_trunc('second', v_silence) || ' ago', 'never heard of');
  remedy := case when status <> 'ok' then e'# in a shell; it stays\nnpm run archiver' end;
  return next;

  check_name := 'restores';
  select string_agg(format('%s: %s', i.partition_name, i.last_error), '; ' order by p.range_start),
    string_agg(
      format('select fleet.request_restore(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date),
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.restore_items i
  join fleet.hb_partitions p using (partition_name)
  where i.state = 'failed' and i.finished_at > p_now - interval '1 day'
    and not exists (
      select from fleet.restore_items l where l.partition_name = i.partition_name and l.request_id > i.request_id
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('failed: ' || v_names, 'none failed in the last day');
  remedy := e'-- once its cause is mended (npm run archive -- verify)\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_archive(timestamptz) is
  'What fleet.check() says of the archive: failures, backlog, the archiver and restores.';
--! EndIncluded functions/check_archive.sql
--! Included functions/check_scheduler.sql
create or replace function fleet.check_scheduler(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  c_restart constant text := format(e'# in a shell, as the user of Postgres\npg_ctl restart -m fast -D ''%s''', v_directory);
  v_has_cron boolean := exists (select from pg_extension where extname = 'pg_cron');
  v_names text;
  v_commands text;
  v_role text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'monitoring';
  status := 'ok'; detail := 'the activity of other roles is visible'; remedy := null;
  if not pg_has_role('fleet_owner', 'pg_monitor', 'usage') or not pg_has_role('fleet_dba', 'pg_signal_backend', 'usage') then
    status := 'warn';
    detail := 'fleet_owner may not see the activity of other roles, or fleet_dba not end it: what is said below of sessions and the scheduler may be wrong';
    remedy := e'-- as superuser\ngrant pg_monitor to fleet_owner, fleet_dba;\ngrant pg_signal_backend to fleet_dba;';
  end if;
  return next;

  check_name := 'scheduler_roles';
  begin
    select string_agg(format('%s of %s', coalesce(j.jobname, 'job ' || j.jobid), j.username), ', '),
      string_agg(format('select cron.unschedule(%s);', j.jobid), e'\n')
    into v_names, v_commands
    from fleet_guard.lost_jobs() j;
  exception when undefined_function or insufficient_privilege then
    v_names := null;  -- set up before there was such a function
  end;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('pg_cron ends and starts again all the time, and runs no job, while the role of one is gone: ' || v_names, 'every job''s role is there');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'scheduler';
  status := 'ok'; detail := 'pg_cron runs'; remedy := null;
  if not v_has_cron and exists (
    select from fleet.events e
    where e.event = 'maintain.start' and e.at <= p_now
      and greatest(e.at, fleet.postgres_started_at()) >= p_now - interval '125 minutes'
  ) then
    detail := 'pg_cron is not in this database; the hourly maintenance arrives all the same';
  elsif not v_has_cron then
    status := 'warn'; detail := 'pg_cron is not in this database, and no maintenance ran in the last two hours';
    remedy := format(e'-- as superuser, in database %s\n', coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'postgres, once pg_cron is there'))
      || (select string_agg(j.statement, e'\n') from fleet.jobs_elsewhere() j);
  elsif pg_is_in_recovery() then
    detail := 'this is a standby: pg_cron waits until it is promoted; the jobs run on the primary, and remedies belong there too';
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs until Postgres is restarted'; remedy := c_restart;
  end if;
  return next;

  check_name := 'jobs';
  select string_agg(format('%s is %s%s', j.jobname, j.fault, ': ' || case j.fault when 'failed' then j.last_message end), ', '),
    string_agg(distinct
      case j.fault
        when 'missing' then 'select * from fleet.schedule_jobs();'
        when 'disabled' then format(
          'select cron.alter_job(jobid, active := true) from cron.job where jobname = %L and username = ''fleet_owner'';', j.jobname
        )
        else d.command || ';'
      end, e'\n'
    ),
    case
      when bool_or(j.fault = 'disabled') then e'-- as superuser\n'
      when bool_or(j.fault <> 'missing') then e'-- as fleet_owner; pg_cron''s next run of it clears this\n'
      else ''
    end
  into v_names, v_commands, v_role
  from (
    select h.*,
      case
        -- None has ever run, long after setup.
        when h.status = 'waiting' and bool_and(h.status = 'waiting') over ()
          and (select min(p.created_at) from fleet.hb_partitions p) < p_now - interval '3 hours' then 'late'
        else h.status
      end as fault
    from fleet.job_health h
    where v_has_cron
  ) j
  join fleet.job_definitions() d using (jobname)
  where j.fault not in ('ok', 'waiting');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, case when v_has_cron then 'all jobs run' else 'their history is in the database of pg_cron' end);
  remedy := v_role || v_commands;
  return next;

  check_name := 'maintenance';
  select string_agg(format('%s %s: %s', e.event, e.partition_name, e.detail), '; '),
    case when bool_and(e.event = 'maintenance.premake') then 'call fleet.maintain();' else 'call fleet.nightly();' end
  into v_names, v_commands
  from (
    select distinct on (k.event, k.partition_name) k.*
    from fleet.events k
    where k.event like 'maintenance.%' and k.at > p_now - interval '25 hours'
    order by k.event, k.partition_name, k.event_id desc
  ) e
  where not e.is_ok;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'no step failed without a later success');
  remedy := case when v_names is not null then e'-- once its cause is mended\n' || v_commands end;
  return next;

  check_name := 'nights';
  status := 'ok'; detail := 'the last night''s work was begun'; remedy := null;
  if fleet.is_night_missed(p_now) then
    status := 'warn'; detail := 'fleet.nightly() was not begun for 25 hours'; remedy := 'call fleet.nightly();';
  end if;
  return next;

  check_name := 'locks_of_maintenance';
  select string_agg(format('%s is held by backend %s for %s', w.name, a.pid, date_trunc('second', p_now - a.query_start)), ', '),
    string_agg(format('select * from fleet.force_unlock(%L);', w.name), e'\n')
  into v_names, v_commands
  from unnest(array['maintenance', 'reconcile']) as w (name)
  cross join fleet.lock_holders(w.name) h
  join pg_stat_activity a on a.pid = h
  where a.query_start < p_now - interval '2 hours';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'none is held for long');
  remedy := v_commands;
  return next;
end
$$;

comment on function fleet.check_scheduler(timestamptz) is
  'What fleet.check() says of the scheduler: pg_cron, its jobs and roles, failed steps, missed nights and stuck locks.';
--! EndIncluded functions/check_scheduler.sql
--! Included functions/job_history.sql
create or replace function fleet.job_history()
returns table (
  jobname text, schedule text, is_active boolean, last_start timestamptz, last_status text, last_message text,
  last_success timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    return query
      select d.jobname, d.schedule, null::boolean, null::timestamptz, null::text, null::text, null::timestamptz
      from fleet.job_definitions() d;
    return;
  end if;
  -- The history has no index on jobid: it is read once for all jobs, not once for each.
  return query execute $history$
    select d.jobname, d.schedule, j.active, h.start_time, h.status, h.return_message, r.last_success
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user and j.database = current_database()
    left join (
      select o.jobid, max(o.runid) as runid, max(o.start_time) filter (where o.status = 'succeeded') as last_success
      from cron.job_run_details o
      group by o.jobid
    ) r on r.jobid = j.jobid
    left join cron.job_run_details h on h.runid = r.runid
  $history$;
end
$$;

comment on function fleet.job_history() is
  'Each expected pg_cron job with its last run and last success; nulls where it is not scheduled in this database.';
--! EndIncluded functions/job_history.sql
--! Included functions/schedule_jobs.sql
create or replace function fleet.schedule_jobs()
returns table (jobname text, schedule text, command text, is_scheduled boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_job record;
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    for v_job in select * from fleet.jobs_elsewhere() loop
      raise notice using
        message = format('not scheduled, pg_cron is not in this database: %s', v_job.jobname),
        hint = format(
          'As superuser, in the database that cron.database_name names (%s): %s',
          -- Not current_setting(): that is an error for whom it is hidden from.
          coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'not known here'), v_job.statement
        );
    end loop;
    return query select d.jobname, d.schedule, d.command, false from fleet.job_definitions() d;
    return;
  end if;

  -- By name, so that a second call changes nothing; jobs of ours that are no longer defined go.
  execute $jobs$
    select cron.unschedule(j.jobid)
    from cron.job j
    where j.jobname like 'fleet-%' and j.username = current_user
      and case
        -- A dump of a database with another name or port brought them, and they would still connect there: schedule() changes neither.
        when (j.database, j.nodeport) <> (current_database(), current_setting('port')::integer) then
          j.jobname in (select d.jobname from fleet.job_definitions() d)
        else j.jobname not in (select d.jobname from fleet.job_definitions() d)
      end
  $jobs$;
  for v_job in select * from fleet.job_definitions() loop
    execute 'select cron.schedule($1, $2, $3)' using v_job.jobname, v_job.schedule, v_job.command;
  end loop;
  return query select d.jobname, d.schedule, d.command, true from fleet.job_definitions() d;
end
$$;

comment on function fleet.schedule_jobs() is
  'Gives pg_cron the jobs of fleet.job_definitions(), as their owner; may be called again. Where pg_cron lives in another database it says what to run there. Example: select * from fleet.schedule_jobs();';
--! EndIncluded functions/schedule_jobs.sql
--! Included functions/check_adoption.sql
create or replace function fleet.check_adoption(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_commands text;
  v_names text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'adoptions';
  select string_agg(f.source || ' ' || f.fault, ', ' order by f.source), string_agg(f.command, e'\n' order by f.source)
  into v_names, v_commands
  from (
    select a.source,
      case
        when c.oid is null then 'is gone'
        when cardinality(a.steps) > 0 then 'stopped' || coalesce(': ' || a.last_error, '')
        else format('has been %s since %s', a.state, a.started_at::date)
      end as fault,
      case
        when c.oid is null then format('select fleet.forget_adoption(%L);', a.source)
        when a.state = 'moving' then format('call fleet.adopt_table(%L);', a.source)
        when a.state = 'abandoning' then format('call fleet.abandon_adoption(%L);', a.source)
        when a.state = 'moved' then format('call fleet.verify_adoption(%L);', a.source)
        else format('select fleet.confirm_adoption(%L);', a.source)
      end as command
    from fleet.adoptions a
    left join pg_class c on c.oid = fleet.source_table(a)
    where a.state in ('moving', 'moved', 'verified', 'abandoning')
      and (
        c.oid is null
        or cardinality(a.steps) > 0 and not exists (select from fleet.lock_holders('adoption') h where h = a.backend)
        -- No partition is retired until then.
        or a.started_at < p_now - interval '30 days'
      )
  ) f;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'none waits for anybody');
  remedy := v_commands;
  return next;

  check_name := 'adoption_forwards';
  select string_agg(distinct e.detail, ', ') into v_names
  from fleet.events e
  where e.event = 'adoption.forward' and e.at > p_now - interval '1 hour'
    and exists (select from fleet.adoptions a where a.state in ('moving', 'moved', 'verified') and e.at > coalesce(a.moved_at, a.started_at));
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'what is written into tables that are adopted comes through');
  remedy := (
    select string_agg(format('call fleet.adopt_table(%L);', a.source), e'\n' order by a.source)
    from fleet.adoptions a
    where v_names is not null and a.state in ('moving', 'moved', 'verified')
  );
  return next;
end
$$;

comment on function fleet.check_adoption(timestamptz) is
  'What fleet.check() says of plain tables that are moved into the store: those that stopped, wait for long, or whose trigger fails.';
--! EndIncluded functions/check_adoption.sql
--! Included functions/forget_adoption.sql
create or replace function fleet.forget_adoption(p_source text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions;
begin
  select f.* into a from fleet.adoptions f where f.source = p_source for update;
  if not found then
    return false;
  end if;
  if a.state not in ('confirmed', 'abandoned') and fleet.source_table(a) is not null then
    raise exception using
      errcode = 'FL002',
      message = format('%s is %s and still there', p_source, a.state),
      hint = format('Confirm or abandon it: select fleet.confirm_adoption(%1$L); or call fleet.abandon_adoption(%1$L);', p_source);
  end if;
  perform fleet.stop_forwarding(a);
  delete from fleet.adoption_ranges r where r.source = p_source;
  delete from fleet.adoption_refusals r where r.source = p_source;
  delete from fleet.adoption_days d where d.source = p_source;
  delete from fleet.adoption_devices d where d.source = p_source;
  delete from fleet.adoptions f where f.source = p_source;
  perform fleet.record_event('adoption.forgotten', p_detail => format('%s, by %s', p_source, session_user));
  return true;
end
$$;

comment on function fleet.forget_adoption(text) is
  'Forgets what is known of the move of a table that is confirmed, abandoned or gone; false when nothing is known. Heartbeats stay. Example: select fleet.forget_adoption(''public.device_heartbeats'');';
--! EndIncluded functions/forget_adoption.sql
--! Included functions/get_adoption.sql
create or replace function fleet.get_adoption(p_source regclass) returns fleet.adoptions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions;
begin
  perform fleet.relink_tables();
  select f.* into a
  from fleet.adoptions f
  where f.relid = p_source
  for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('%s is not being adopted', coalesce(p_source::text, 'null')),
      hint = format('Those that are: select * from fleet.adoption_progress; to begin: call fleet.adopt_table(%L);', p_source::text);
  end if;
  return a;
end
$$;

comment on function fleet.get_adoption(regclass) is 'The adoption of a table, locked; an error when there is none.';
--! EndIncluded functions/get_adoption.sql
--! Included functions/begin_adoption.sql
create or replace function fleet.begin_adoption(
  p_source regclass,
  p_columns jsonb,
  p_unknown_devices text,
  p_oldest timestamptz,
  p_forward boolean
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions;
  v_old fleet.adoptions;
begin
  perform fleet.take_adoption_lock();
  begin
    perform fleet.relink_tables();
    select f.* into v_old from fleet.adoptions f where f.relid = p_source;
    if v_old.state = 'abandoning' then
      raise exception using
        errcode = 'FL002',
        message = format('%s is being abandoned', v_old.source),
        hint = format('Let that end first: call fleet.abandon_adoption(%L);', v_old.source);
    end if;
    -- What was said the first time holds.
    a := fleet.describe_source(
      p_source, coalesce(p_columns, v_old.columns), coalesce(p_unknown_devices, v_old.unknown_devices),
      coalesce(p_oldest, case when v_old.is_oldest_given then v_old.oldest end), coalesce(p_forward, v_old.forwards)
    );
  exception when others then
    perform pg_advisory_unlock(hashtextextended('fleet.adoption', 0));
    raise;
  end;

  -- Another table of that name, or none before: nothing is known of it.
  delete from fleet.adoption_days d where d.source = a.source and v_old.relid is null;
  delete from fleet.adoptions f where f.source = a.source and f.relid <> a.relid;

  if v_old.state = 'moving' and (v_old.columns, v_old.unknown_devices, v_old.match_by) = (a.columns, a.unknown_devices, a.match_by)
    and p_oldest is null and v_old.forwards = a.forwards
  then
    update fleet.adoptions f
    set step_started_at = clock_timestamp(), step_from = f.step_done, step_rows = 0, backend = pg_backend_pid(), last_error = null
    where f.relid = p_source;
    perform fleet.record_event('adoption.resume', p_detail => format('%s, pass %s, by %s', a.source, v_old.pass, session_user));
    return a.source;
  end if;

  insert into fleet.adoptions as f (
    source, relid, state, steps, pass, columns, unknown_devices, oldest, is_oldest_given, forwards, match_by, store_ip, backend
  )
  values (
    a.source, a.relid, 'moving', '{survey,enroll,partitions,forward,move}', 1, a.columns, a.unknown_devices, a.oldest,
    a.is_oldest_given, a.forwards, a.match_by, a.store_ip, pg_backend_pid()
  )
  on conflict (source) do update
    set state = excluded.state, steps = excluded.steps, pass = f.pass + 1, columns = excluded.columns,
      unknown_devices = excluded.unknown_devices, oldest = excluded.oldest, is_oldest_given = excluded.is_oldest_given,
      forwards = excluded.forwards, match_by = excluded.match_by, backend = excluded.backend,
      step = null, last_error = null, confirmed_at = null, abandoned_at = null,
      -- A new beginning after an end; until then it is the same move, with one way back.
      started_at = case when f.state in ('confirmed', 'abandoned') then now() else f.started_at end,
      store_ip = case when f.state in ('confirmed', 'abandoned') then excluded.store_ip else f.store_ip end;
  perform fleet.record_event('adoption.start', p_detail => format('%s, by %s', a.source, session_user));
  return a.source;
end
$$;

comment on function fleet.begin_adoption(regclass, jsonb, text, timestamptz, boolean) is
  'Begins the move of a table, or takes it up where it ended; behind fleet.adopt_table().';
--! EndIncluded functions/begin_adoption.sql
--! Included functions/adoption_step.sql
create or replace function fleet.adoption_step(p_source text, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
set jit = off
as $$
declare
  a fleet.adoptions;
  v_step text;
  v_more boolean;
begin
  perform fleet.relink_tables();
  select f.* into a from fleet.adoptions f where f.source = p_source for update;
  v_step := a.steps[1];
  if v_step is null then
    return false;
  end if;
  if pg_relation_filenode(a.relid) is null then
    raise exception using
      errcode = 'FL404',
      message = format('table %s is gone', p_source),
      hint = format('What was moved is in the store. To be done with it: select fleet.forget_adoption(%L);', p_source);
  end if;
  -- A table that was rewritten (VACUUM FULL, CLUSTER) has its rows in other places: read from the start.
  if a.step is distinct from v_step or (v_step in ('survey', 'move') and a.filenode <> pg_relation_filenode(a.relid)) then
    perform fleet.begin_adoption_step(a);
    return true;
  end if;

  case v_step
    when 'survey' then v_more := fleet.survey_blocks(a, p_batch_rows);
    when 'enroll' then v_more := fleet.enroll_unknown(a);
    when 'partitions' then v_more := fleet.prepare_partitions(a);
    when 'forward' then v_more := fleet.start_forwarding(a);
    when 'move' then v_more := fleet.move_blocks(a, p_batch_rows);
    when 'verify' then v_more := fleet.verify_days(a, p_batch_rows * 10);
    when 'unforward' then v_more := fleet.stop_forwarding(a);
    when 'write_back' then v_more := fleet.write_back_partition(a);
  end case;
  update fleet.adoptions f
  set updated_at = clock_timestamp(), last_error = null,
    step = case when v_more then f.step end,
    steps = case when v_more then f.steps else f.steps[2:] end
  where f.source = p_source;
  return v_more or cardinality(a.steps) > 1;
end
$$;

comment on function fleet.adoption_step(text, integer) is
  'The next batch of what is left to do for a table that is adopted, in this transaction; false when nothing is left. Called by fleet.run_adoption().';
--! EndIncluded functions/adoption_step.sql
--! Included functions/archive_form.sql
-- The list of types that can be archived. archiver/parquet.ts has the same list for DuckDB, and sql/shape-guard.sql has the names.
-- A type may come from a manifest and becomes part of a statement, so the whole text is compared.
create or replace function fleet.archive_form(p_type text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_type in ('smallint', 'integer', 'bigint', 'boolean', 'uuid') or p_type ~ '^numeric(\(\d+,-?\d+\))?$' then
      $f$%1$I::text$f$
    when p_type in ('text', 'jsonb', 'text[]') then
      $f$octet_length(%1$I::text) || ':' || %1$I::text$f$
    when p_type = 'inet' then
      $f$octet_length(abbrev(%1$I)) || ':' || abbrev(%1$I)$f$
    when p_type ~ '^timestamp(\(\d\))? with(out)? time zone$' then
      $f$case when isfinite(%1$I) then trunc(extract(epoch from %1$I) * 1000000)::text else %1$I::text end$f$
    when p_type = 'date' then
      $f$case when isfinite(%1$I) then (%1$I - date '1970-01-01')::text else %1$I::text end$f$
    when p_type = 'double precision' then
      -- By its bits, because Postgres and DuckDB print different texts. NaN has many bit patterns, so it is written by name.
      $f$case when %1$I = 'NaN' then 'NaN' else ('x' || encode(float8send(%1$I), 'hex'))::bit(64)::text end$f$
  end;
$$;

comment on function fleet.archive_form(text) is
  'The SQL expression for the canonical text of a value that is not null, as a format() string that takes the column''s name; null for a type that cannot be archived. Example: select fleet.archive_form(''numeric(10,2)'');';
--! EndIncluded functions/archive_form.sql
--! Included functions/unarchivable_columns.sql
create or replace function fleet.unarchivable_columns(p_table regclass) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(
    format('%s %s%s', a.attname, format_type(a.atttypid, a.atttypmod), case when a.attgenerated <> '' then ' (generated)' else '' end),
    ', ' order by a.attnum
  )
  from pg_attribute a
  where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    -- COPY neither reads nor writes a generated column.
    and (a.attgenerated <> '' or fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is null);
$$;

comment on function fleet.unarchivable_columns(regclass) is
  'The columns of a table, with their types, for which the archive has no form; null if there are none. Example: select fleet.unarchivable_columns(''fleet.device_heartbeats'');';
--! EndIncluded functions/unarchivable_columns.sql
--! Included functions/require_forms.sql
create or replace function fleet.require_forms(p_partition text, p_columns jsonb) returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  select string_agg(format('%s %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality) into v_unknown
  from jsonb_array_elements(p_columns) with ordinality c
  where c.value ->> 'name' is null or fleet.archive_form(c.value ->> 'type') is null;
  if v_unknown is not null or jsonb_array_length(p_columns) = 0 then
    raise exception using
      errcode = 'FL422',
      message = format('the archive of %s has columns of unknown types: %s', p_partition, coalesce(v_unknown, 'it has no columns')),
      hint = 'A newer version of this software may have written it. The forms are in sql/functions/archive_form.sql and archiver/parquet.ts.';
  end if;
end
$$;

comment on function fleet.require_forms(text, jsonb) is
  'Raises an error if a column of an archive has a type without a form; see fleet.archive_form().';
--! EndIncluded functions/require_forms.sql
--! Included functions/archive_columns.sql
create or replace function fleet.archive_columns(p_table regclass)
returns table (name text, type text, "position" integer)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  v_unknown := fleet.unarchivable_columns(p_table);
  if v_unknown is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be archived: the archive has no form for %s', p_table, v_unknown),
      hint = 'Use a type that has a form (select fleet.archive_form(type)), or add a form for this one to sql/functions/archive_form.sql, '
        'sql/shape-guard.sql and archiver/parquet.ts.';
  end if;
  return query
    select a.attname::text, format_type(a.atttypid, a.atttypmod), (row_number() over (order by a.attnum))::integer
    from pg_attribute a
    where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    order by a.attnum;
end
$$;

comment on function fleet.archive_columns(regclass) is
  'The columns of a partition as they are archived, in order; an error for a type that has no canonical form.';
--! EndIncluded functions/archive_columns.sql
--! Included functions/checksum_expression.sql
create or replace function fleet.checksum_expression(
  p_table regclass,
  p_columns jsonb default null,
  p_checksum_version integer default null
) returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_columns jsonb := p_columns;
  v_unknown text;
begin
  if v_columns is null then
    select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) into v_columns
    from fleet.archive_columns(p_table) c;
  end if;
  if p_checksum_version not in (1, 2) then
    raise exception using
      errcode = 'FL422',
      message = format('checksum version %s is unknown; this database knows versions 1 and 2', p_checksum_version),
      hint = 'A newer version of this software wrote the archive. Migrate the database with that version.';
  end if;

  -- Version 2 has more types than version 1, and the same text for the types of version 1.
  select string_agg(format('%s %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality) into v_unknown
  from jsonb_array_elements(v_columns) with ordinality c
  where fleet.archive_form(c.value ->> 'type') is null
    or (p_checksum_version = 1 and c.value ->> 'type' not in (
      'timestamp with time zone', 'smallint', 'integer', 'bigint', 'boolean', 'text', 'inet'
    ));
  if v_unknown is not null then
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s has no checksum%s: the archive has no form for %s', p_table, ' of version ' || p_checksum_version, v_unknown
      ),
      hint = 'The forms are in sql/functions/archive_form.sql and archiver/parquet.ts.';
  end if;
  select string_agg(c.value ->> 'name', ', ' order by c.ordinality) into v_unknown
  from jsonb_array_elements(v_columns) with ordinality c
  where not exists (
    select from pg_attribute a where a.attrelid = p_table and a.attname = c.value ->> 'name' and a.attnum > 0 and not a.attisdropped
  );
  if v_unknown is not null then
    raise exception using
      errcode = 'FL010',
      message = format('%s lacks columns that its checksum covers: %s', p_table, v_unknown),
      hint = 'The table was changed after it was retired.';
  end if;

  return (
    select format(
      $f$('x' || left(md5(%s), 15))::bit(60)::bigint$f$,
      string_agg(
        format($f$coalesce(%s, '~')$f$, format(fleet.archive_form(c.value ->> 'type'), c.value ->> 'name')),
        $f$ || '|' || $f$ order by c.ordinality
      )
    )
    from jsonb_array_elements(v_columns) with ordinality c
  );
end
$$;

comment on function fleet.checksum_expression(regclass, jsonb, integer) is
  'The SQL expression for the checksum of one row, from the canonical texts of these columns, or of all columns of the table; see fleet.content_checksum().';
--! EndIncluded functions/checksum_expression.sql
--! Included functions/content_checksum.sql
-- Runs with the caller's rights and in the caller's snapshot, so that it sees the same rows as other statements of its transaction.
create or replace function fleet.content_checksum(
  p_table regclass,
  p_columns jsonb default null,
  p_checksum_version integer default null,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'select count(*), coalesce(sum(%s), 0), min(ts), max(ts) from %s',
    fleet.checksum_expression(p_table, p_columns, p_checksum_version), p_table
  ) into row_count, content_checksum, min_ts, max_ts;
end
$$;

comment on function fleet.content_checksum(regclass, jsonb, integer) is
  'Number of rows of a partition, a checksum that does not depend on order or format, and the oldest and newest ts. p_columns: the columns to cover, as in fleet.hb_partitions.columns; default: all columns of the table. p_checksum_version: the definition to use; default: the newest. Example: select p.partition_name, c.* from fleet.partition_health p cross join fleet.content_checksum(format(''fleet_detached.%I'', p.partition_name)::regclass) c where p.state = ''detached'';';
--! EndIncluded functions/content_checksum.sql
--! Included functions/note_columns.sql
-- Called wherever the columns matter, so renames are found without an event trigger: a column keeps its attnum when it is renamed.
-- A restored dump numbers the columns again, so there only the names decide.
create or replace function fleet.note_columns() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table oid := 'fleet.device_heartbeats'::regclass;
  v_system bigint := 0;
  v_at timestamptz;
  v_is_known boolean;
  v_is_same_table boolean;
  v_count integer := 0;
begin
  if pg_is_in_recovery() then
    return 0;  -- the primary notes the changes
  end if;
  -- A managed Postgres may hide it. The oid of the table then has to be enough.
  if has_function_privilege('pg_control_system()', 'execute') then
    v_system := (select s.system_identifier from pg_control_system() s);
  end if;
  for v_attempt in 1..2 loop
    if not exists (
      with found as (
        select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type, a.attnum, v_table as relid,
          v_system as system_identifier
        from pg_attribute a
        where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped
      ),
      known as (
        select h.name, h.type, h.attnum, h.relid, h.system_identifier
        from fleet.heartbeat_columns h
      )
      (table found except table known) union all (table known except table found)
    ) then
      return 0;
    end if;
    -- Another session may be noting the same changes, so look again once it has finished.
    lock table fleet.heartbeat_columns in share row exclusive mode;
  end loop;

  v_at := clock_timestamp();
  select count(*) > 0, bool_and(h.relid = v_table and h.system_identifier = v_system) into v_is_known, v_is_same_table
  from fleet.heartbeat_columns h;
  if v_is_known then
    with now_columns as (
      select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type,
        case when v_is_same_table then a.attnum::text else a.attname::text end as key
      from pg_attribute a
      where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped
    ),
    known as (
      select h.name, h.type, case when v_is_same_table then h.attnum::text else h.name end as key
      from fleet.heartbeat_columns h
    ),
    pairs as (
      select k.name as old_name, k.type as old_type, n.name as new_name, n.type as new_type
      from known k
      full join now_columns n using (key)
    )
    insert into fleet.column_changes (changed_at, change, name, new_name, type, new_type)
    select v_at, c.change, coalesce(p.old_name, p.new_name), case c.change when 'renamed' then p.new_name end, p.old_type, p.new_type
    from pairs p
    cross join lateral (
      select 'added' as change where p.old_name is null
      union all
      select 'dropped' where p.new_name is null
      union all
      select 'renamed' where p.old_name <> p.new_name
      union all
      select 'retyped' where p.old_type <> p.new_type
    ) c
    order by c.change, coalesce(p.old_name, p.new_name);
    get diagnostics v_count = row_count;
  end if;
  delete from fleet.heartbeat_columns;
  insert into fleet.heartbeat_columns (name, type, attnum, relid, system_identifier)
  select a.attname, format_type(a.atttypid, a.atttypmod), a.attnum, v_table, v_system
  from pg_attribute a
  where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped;

  perform fleet.record_event(
    'columns.change',
    p_detail => string_agg(
      concat_ws(
        ' ', c.change, c.name,
        case c.change when 'renamed' then 'to ' || c.new_name when 'retyped' then 'to ' || c.new_type else coalesce(c.new_type, c.type) end
      ),
      ', ' order by c.change_id
    )
  )
  from fleet.column_changes c
  where c.changed_at = v_at
  having count(*) > 0;
  return v_count;
end
$$;

comment on function fleet.note_columns() is
  'Compares the columns of fleet.device_heartbeats with those that were noted last, and records in fleet.column_changes which were added, dropped, renamed or retyped; returns how many. Run by fleet.maintain() and before a partition is retired or restored. Example: select fleet.note_columns(); select * from fleet.column_changes;';
--! EndIncluded functions/note_columns.sql
--! Included functions/map_columns.sql
create or replace function fleet.map_columns(p_columns jsonb, p_at timestamptz default null)
returns table ("position" integer, name text, type text, today_name text, today_type text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_column record;
  v_change fleet.column_changes;
  v_applied timestamptz;
  v_names text[] := array[]::text[];
  v_name text;
begin
  for v_column in
    select c.value ->> 'name' as name from jsonb_array_elements(p_columns) with ordinality c order by c.ordinality
  loop
    v_name := v_column.name;
    v_applied := null;
    for v_change in
      select c.*
      from fleet.column_changes c
      where c.change in ('renamed', 'dropped') and (p_at is null or c.changed_at > p_at)
      order by c.change_id
    loop
      -- Changes that were noted together happened at once: two columns may have exchanged their names.
      continue when v_change.name is distinct from v_name or v_change.changed_at = v_applied;
      v_name := v_change.new_name;
      v_applied := v_change.changed_at;
      exit when v_name is null;
    end loop;
    v_names := v_names || v_name;
  end loop;

  return query
    select c.ordinality::integer, c.value ->> 'name', c.value ->> 'type', t.name, t.type
    from jsonb_array_elements(p_columns) with ordinality c
    left join lateral (
      select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attname = v_names[c.ordinality] and a.attnum > 0 and not a.attisdropped
        -- If two columns lead to the same one, the column that already has the name wins.
        and c.ordinality = (
          select o.ordinality
          from jsonb_array_elements(p_columns) with ordinality o
          where v_names[o.ordinality] = v_names[c.ordinality]
          order by o.value ->> 'name' = v_names[c.ordinality] desc, o.ordinality
          limit 1
        )
    ) t on true
    order by c.ordinality;
end
$$;

comment on function fleet.map_columns(jsonb, timestamptz) is
  'Maps each column of an archive to its column in fleet.device_heartbeats today, following the renames since p_at (null: all known renames); null if the column was dropped. Example: select m.* from fleet.archives a, fleet.hb_partitions p, fleet.map_columns(p.columns, p.columns_at) m where p.partition_name = a.partition_name;';
--! EndIncluded functions/map_columns.sql
--! Included functions/reshape_restored.sql
-- Works on the staging table only. If anything fails here, the parent table was not touched.
create or replace function fleet.reshape_restored(p_table regclass, p_columns jsonb, p_at timestamptz) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  v_left_out text;
  v_column record;
  v_changed bigint;
begin
  perform fleet.note_columns();

  select string_agg(format('%s (%s)', m.name, m.type), ', ' order by m.position) into v_left_out
  from fleet.map_columns(p_columns, p_at) m
  where m.today_name is null;
  for v_column in select m.name from fleet.map_columns(p_columns, p_at) m where m.today_name is null loop
    execute format('alter table %s drop column %I', p_table, v_column.name);
  end loop;

  -- By way of temporary names, because two columns may have exchanged theirs.
  for v_column in
    select m.name, format('restoring_%s', m.position) as between_name, m.today_name
    from fleet.map_columns(p_columns, p_at) m
    where m.today_name <> m.name
  loop
    execute format('alter table %s rename column %I to %I', p_table, v_column.name, v_column.between_name);
  end loop;
  for v_column in
    select format('restoring_%s', m.position) as between_name, m.today_name
    from fleet.map_columns(p_columns, p_at) m
    where m.today_name <> m.name
  loop
    execute format('alter table %s rename column %I to %I', p_table, v_column.between_name, v_column.today_name);
  end loop;

  for v_column in
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as is_not_null,
      pg_get_expr(d.adbin, d.adrelid) as default_value, col_description(a.attrelid, a.attnum) as comment,
      case when c.oid is not null then format('collate %I.%I', c.collnamespace::regnamespace, c.collname) end as collation,
      case when s.attnum is not null then format_type(s.atttypid, s.atttypmod) end as archived_type,
      (s.atttypid, s.atttypmod, s.attcollation) is distinct from (a.atttypid, a.atttypmod, a.attcollation) as is_other
    from pg_attribute a
    left join pg_attribute s on s.attrelid = p_table and s.attname = a.attname and s.attnum > 0 and not s.attisdropped
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    left join pg_collation c on c.oid = a.attcollation and c.collname <> 'default'
    where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
    order by a.attnum
  loop
    begin
      if v_column.archived_type is null then
        -- Rows that are older than the column have no value for it, so the default is used only for a column that must not be null.
        execute format(
          'alter table %s add column %I %s %s %s', p_table, v_column.name, v_column.type, v_column.collation,
          case when v_column.is_not_null then concat_ws(' ', 'default ' || v_column.default_value, 'not null') end
        );
      elsif v_column.is_other then
        execute format(
          'select count(*) from %s where %I is distinct from %2$I::%s::%s', p_table, v_column.name, v_column.type, v_column.archived_type
        ) into v_changed;
        if v_changed > 0 then
          raise exception using message = format('%s values would change', v_changed);
        end if;
        execute format(
          'alter table %s alter column %I type %s %s using %2$I::%3$s', p_table, v_column.name, v_column.type, v_column.collation
        );
      end if;
      if v_column.default_value is not null then
        execute format('alter table %s alter column %I set default %s', p_table, v_column.name, v_column.default_value);
      end if;
      if v_column.is_not_null then
        execute format('alter table %s alter column %I set not null', p_table, v_column.name);
      end if;
      if v_column.comment is not null then
        execute format('comment on column %s.%I is %L', p_table, v_column.name, v_column.comment);
      end if;
    exception when data_exception or integrity_constraint_violation or syntax_error_or_access_rule_violation or raise_exception then
      raise exception using
        errcode = 'FL010',
        message = format(
          'column %s: the archive has %s, the table has %s%s, and the values cannot be converted (%s); nothing is attached',
          v_column.name, coalesce(v_column.archived_type, 'no such column'), v_column.type,
          case when v_column.is_not_null then ' not null' else '' end, sqlerrm
        ),
        hint = case
          when v_column.archived_type is null then
            format('Give it a default: alter table fleet.device_heartbeats alter column %I set default …;', v_column.name)
          else 'The archive is complete. Read it with npm run archive -- query, or change the column back.'
        end;
    end;
  end loop;
  return v_left_out;
end
$$;

comment on function fleet.reshape_restored(regclass, jsonb, timestamptz) is
  'Changes a proven restored table from the columns of its archive to those of fleet.device_heartbeats today; returns the columns that were left out, or null. Raises an error that names the column if a value would change.';
--! EndIncluded functions/reshape_restored.sql
--! Included functions/record_columns.sql
-- Archives that were made before 0.2 have their columns only in the manifest.
create or replace function fleet.record_columns(
  p_partition text,
  p_checksum_sha256 text,
  p_columns jsonb,
  p_checksum_version integer,
  p_manifest_format integer
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_is_in_recovery() then
    return false;
  end if;
  perform fleet.require_forms(p_partition, p_columns);
  update fleet.hb_partitions
  set columns = p_columns, checksum_version = p_checksum_version, manifest_format = p_manifest_format
  where partition_name = p_partition and columns is null and checksum_sha256 = p_checksum_sha256 and proven_at is not null;
  return found;
end
$$;

comment on function fleet.record_columns(text, text, jsonb, integer, integer) is
  'Records the columns of a proven archive from before 0.2, which the archiver reads from its manifest; false if they are known already.';
--! EndIncluded functions/record_columns.sql
--! Included functions/record_export.sql
create or replace function fleet.record_export(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_partition.counted is null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is not counted yet; its export cannot be recorded', p_partition),
      hint = 'Call fleet.count_retired() first.';
  end if;
  update fleet.hb_partitions p
  set step = 'exported', row_count = (p.counted ->> 'row_count')::bigint, content_checksum = (p.counted ->> 'content_checksum')::numeric,
    min_ts = (p.counted ->> 'min_ts')::timestamptz, max_ts = (p.counted ->> 'max_ts')::timestamptz,
    checksum_sha256 = null, archive_url = null, archive_bytes = null, proven_at = null,
    columns = p.counted -> 'columns', columns_at = coalesce(p.detached_at, clock_timestamp()),
    checksum_version = (p.counted ->> 'checksum_version')::smallint, manifest_format = null, rows_hash = (p.counted ->> 'rows_hash')::numeric, counted = null
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.record_export(text, text) is
  'Archiving, step exported: from here on the archive has to match what fleet.count_retired() counted, and an earlier archive of the day is forgotten.';
--! EndIncluded functions/record_export.sql
--! Included functions/record_upload.sql
create or replace function fleet.record_upload(
  p_partition text,
  p_worker text,
  p_archive_url text,
  p_checksum_sha256 text,
  p_archive_bytes bigint,
  p_manifest_format integer default 1,
  p_checksum_version integer default null
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_partition.step not in ('exported', 'uploaded') then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is at step %s; it is exported before it is uploaded', p_partition, v_partition.step);
  end if;
  update fleet.hb_partitions
  set step = 'uploaded', archive_url = p_archive_url, checksum_sha256 = p_checksum_sha256, archive_bytes = p_archive_bytes,
    manifest_format = p_manifest_format, checksum_version = coalesce(p_checksum_version, checksum_version)
  where partition_name = p_partition;
  perform fleet.count_up('archive_bytes_pushed_total', p_archive_bytes);
end
$$;

comment on function fleet.record_upload(text, text, text, text, bigint, integer, integer) is
  'Archiving, step uploaded: where the Parquet file is, its SHA-256 and size, and the format of its manifest.';
--! EndIncluded functions/record_upload.sql
--! Included functions/begin_restore.sql
create or replace function fleet.begin_restore(p_partition text, p_worker text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_table text := fleet.restoring_name(p_partition);
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'dropped' or not exists (
    select from fleet.restore_items i
    where i.partition_name = p_partition and i.state = 'running' and i.lease_owner = p_worker
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; %s may not restore it', p_partition, v_partition.state, p_worker),
      hint = 'Claim it first with fleet.claim_restore().';
  end if;
  if v_partition.columns is null then
    raise exception using
      errcode = 'FL002',
      message = format('the columns of the archive of %s are not recorded, so it is not restored', p_partition),
      hint = 'The archiver records them from the manifest. Run the version of the archiver that belongs to this database.';
  end if;
  perform fleet.require_forms(p_partition, v_partition.columns);
  -- A try that was cut short left its table.
  perform fleet.drop_restoring(p_partition);
  -- It gets the archive's columns, which its proof needs. fleet.finish_restore() then changes them to today's columns.
  execute format('create table fleet.%I (%s)', v_table, (
    select string_agg(format('%I %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality)
    from jsonb_array_elements(v_partition.columns) with ordinality c
  ));
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_restore(text, text) is
  'Makes the empty table for a restore, with the columns of the archive, and returns its name.';
--! EndIncluded functions/begin_restore.sql
--! Included functions/finish_restore.sql
create or replace function fleet.finish_restore(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_got record;
  v_left_out text;
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := to_regclass(format('fleet.%I', fleet.restoring_name(p_partition)));
  if v_partition.state = 'restored' then
    return;
  end if;
  if v_table is null or v_partition.state <> 'dropped' or not exists (
    select from fleet.restore_items i
    where i.partition_name = p_partition and i.state = 'running' and i.lease_owner = p_worker
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; %s has not begun to restore it', p_partition, v_partition.state, p_worker),
      hint = 'Call fleet.begin_restore() first.';
  end if;

  -- The archiver may insert until here, so take its rights before comparing: exactly the compared rows are attached.
  execute format('revoke all on %s from fleet_archiver', v_table);
  execute format('alter table %s disable row level security', v_table);
  select * into v_got from fleet.content_checksum(v_table, v_partition.columns, v_partition.checksum_version);
  if (v_got.row_count, v_got.content_checksum, v_got.min_ts, v_got.max_ts) is distinct from (
    v_partition.row_count, v_partition.content_checksum, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the restored rows of %s differ from what was archived; it is not attached', p_partition),
      detail = format(
        'rows %s, restored %s; content checksum %s, restored %s',
        v_partition.row_count, v_got.row_count, v_partition.content_checksum, v_got.content_checksum
      ),
      hint = 'Check the object with: npm run archive -- verify';
  end if;

  v_left_out := fleet.reshape_restored(v_table, v_partition.columns, v_partition.columns_at);

  execute format('alter table %s rename to %I', v_table, p_partition);
  update fleet.hb_partitions set relid = v_table where partition_name = p_partition;
  perform fleet.bind_range(p_partition);
  perform partman.inherit_template_properties('fleet.device_heartbeats', 'fleet', p_partition);
  execute format(
    'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
    v_table, v_partition.range_start, v_partition.range_end
  );
  execute format('analyze %s', v_table);

  update fleet.hb_partitions
  set state = 'restored', step = null, restored_at = now(), bytes_size = pg_total_relation_size(v_table)
  where partition_name = p_partition;
  update fleet.restore_items
  set state = 'done', finished_at = now(), lease_owner = null, lease_until = null, last_error = null,
    left_out = v_left_out
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  perform fleet.record_event('partition.restore', p_partition, v_got.row_count, p_detail => 'left out, and kept in the archive: ' || v_left_out);
end
$$;

comment on function fleet.finish_restore(text, text) is
  'Compares the restored rows with the archive, over its own columns, changes the table to today''s columns, indexes it and attaches it; state restored.';
--! EndIncluded functions/finish_restore.sql
--! Included functions/premake.sql
create or replace function fleet.premake(p_now timestamptz default now()) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
  v_from date;
  v_to date;
begin
  perform fleet.note_columns();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));
  select greatest((p_now - s.retention)::date, coalesce((select min(a.range_start)::date from fleet.attached_partitions() a), p_now::date)),
    p_now::date + s.premake_days
  into strict v_from, v_to
  from fleet.settings s;

  -- Right after a change of cadence the last partition is of the old width, which run_maintenance would miscount.
  if (
    select a.range_end = a.range_start + c.partition_interval::interval
    from fleet.attached_partitions() a
    cross join partman.part_config c
    where c.parent_table = 'fleet.device_heartbeats'
    order by a.range_start desc
    limit 1
  ) then
    perform partman.run_maintenance(p_parent_table => 'fleet.device_heartbeats', p_analyze => false, p_jobmon => false);
  end if;

  -- run_maintenance only adds at the far end, by the real clock, and reports "already running" as success: what is still
  -- missing is made by name, also the days that a long outage left out, for devices that send late.
  perform fleet.create_partitions(v_from, v_to);

  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.premake(timestamptz) is
  'Makes the partitions up to premake_days ahead, and those missing within the retention, and returns their names. Run by fleet.maintain().';
--! EndIncluded functions/premake.sql
--! Included functions/check_columns.sql
create or replace function fleet.check_columns() returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_unknown text := fleet.unarchivable_columns('fleet.device_heartbeats');
begin
  check_name := 'archive_columns';
  if v_unknown is not null then
    status := 'fail';
    detail := format('the archive has no form for %s: no day with this column can be archived or dropped', v_unknown);
    remedy := (
      select e'-- as fleet_owner; this can rewrite every partition, and heartbeats wait until it is done\n' || string_agg(
        case
          -- A virtual one (PostgreSQL 18) has no stored values, and its expression cannot be dropped.
          when a.attgenerated = 'v' then format('alter table fleet.device_heartbeats drop column %I;', a.attname)
          when a.attgenerated <> '' then format('alter table fleet.device_heartbeats alter column %I drop expression;', a.attname)
          else format('alter table fleet.device_heartbeats alter column %I type text using %1$I::text;', a.attname)
        end,
        e'\n' order by a.attnum
      )
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
        and (a.attgenerated <> '' or fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is null)
    );
  elsif not exists (select from pg_event_trigger where evtname = 'fleet_guard_columns' and evtenabled = 'A') then
    status := 'warn';
    detail := 'the event trigger fleet_guard_columns is missing or not ENABLE ALWAYS: a column that cannot be archived is not refused';
    remedy := concat_ws(
      e'\n', '-- as superuser, after sql/shape-guard.sql',
      case
        when not exists (select from pg_event_trigger where evtname = 'fleet_guard_columns') then
          'create event trigger fleet_guard_columns on ddl_command_end when tag in (''ALTER TABLE'') '
            'execute function fleet_guard.refuse_unarchivable_column();'
      end,
      'alter event trigger fleet_guard_columns enable always;'
    );
  else
    status := 'ok';
    detail := 'every column of fleet.device_heartbeats can be archived';
  end if;
  return next;
end
$$;

comment on function fleet.check_columns() is
  'The part of fleet.check() about the columns of fleet.device_heartbeats: whether each can be archived, and whether others are refused.';
--! EndIncluded functions/check_columns.sql
--! Included functions/check.sql
-- The themes in order of importance. Whatever is broken, one of them fails alone: the others still say what they see.
create or replace function fleet.check(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_theme text;
begin
  perform fleet.not_in_future(p_now);
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_silence($1)', 'check_scheduler($1)', 'check_archive($1)', 'check_columns()',
    'check_sessions($1)', 'check_storage($1)', 'check_adoption($1)', 'check_settings()'
  ] loop
    begin
      return query execute 'select * from fleet.' || v_theme using p_now;
    exception when others then
      check_name := split_part(v_theme, '(', 1);
      status := 'fail';
      detail := 'could not look: ' || sqlerrm;
      remedy := format(e'-- shows where it ends\nselect * from fleet.%I();', check_name);
      return next;
    end;
  end loop;
end
$$;

comment on function fleet.check(timestamptz) is
  'One row per thing that can go wrong: ok, warn or fail, with the remedy as commands, one a line: SQL as fleet_dba unless its first line says "-- as superuser" or "-- as fleet_owner", a shell''s where it says "# in a shell". Reads no heartbeats but those of a few devices. Example: select * from fleet.check() where status <> ''ok'';';
--! EndIncluded functions/check.sql
--! Included functions/archive_partition.sql
create or replace function fleet.archive_partition(p_partition text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'archive_failed' then
    return fleet.retry_archive(p_partition);
  end if;
  if v_partition.state in ('archived', 'dropped') then
    return format('partition %s is %s already', p_partition, v_partition.state);
  end if;
  if v_partition.state in ('active', 'restored') then
    perform fleet.retire_partition(p_partition);
  end if;
  perform pg_notify('fleet_archiver', p_partition);
  return format('partition %s waits for the archiver', p_partition);
end
$$;

comment on function fleet.archive_partition(text) is
  'Retires one past partition now and wakes the archiver. Example: select fleet.archive_partition(partition_name) from fleet.partition_health where range_start <= current_date - 60 and range_end > current_date - 60;';
--! EndIncluded functions/archive_partition.sql
--! Included functions/create_partitions.sql
create or replace function fleet.create_partitions(p_from date, p_to date) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
  v_taken tstzmultirange;
  v_width interval;
  v_starts timestamptz[];
begin
  if p_from is null or p_to is null or p_from > p_to or p_to - p_from > 4000 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot create partitions from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a first and a last day, in order, at most 4000 days apart: select fleet.create_partitions(current_date - 30, current_date + 14).';
  end if;

  perform fleet.sync_partitions();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));

  select range_agg(tstzrange(t.range_start, t.range_end)) into v_taken
  from (
    select a.range_start, a.range_end
    from fleet.attached_partitions() a
    union all
    -- A retired day is not made anew beside its archive: fleet.request_restore() brings it back.
    select lower(r), upper(r)
    from unnest(fleet.retired_ranges()) r
  ) t;

  for v_width, v_starts in
    select w.width, array_agg(distinct w.range_start order by w.range_start)
    from (
      select
        -- A month in which days have partitions of their own is filled up with days.
        case when m.is_free then interval '1 month' else interval '1 day' end as width,
        case when m.is_free then m.range_start else d.day end as range_start
      from generate_series(p_from::timestamptz, p_to::timestamptz, interval '1 day') as d (day)
      cross join fleet.settings s
      cross join lateral (
        select date_trunc('month', d.day) as range_start,
          s.cadence = 'monthly' and coalesce(
            not v_taken && tstzrange(date_trunc('month', d.day), date_trunc('month', d.day) + interval '1 month'), true
          ) as is_free
      ) m
      where coalesce(not v_taken @> d.day, true)
    ) w
    group by w.width
  loop
    perform fleet.ensure_partitions(v_starts, v_width);
  end loop;

  perform fleet.sync_partitions();
  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Makes the partitions that are missing between two days, both included, and returns their names. Retired days are left to fleet.request_restore(). Example: select fleet.create_partitions(current_date, current_date + 30);';
--! EndIncluded functions/create_partitions.sql
--! Included functions/hold_partition.sql
create or replace function fleet.hold_partition(p_partition text, p_reason text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format('a reason is needed to hold partition %s', coalesce(p_partition, 'null')),
      hint = format('Example: select fleet.hold_partition(%L, ''legal hold, case 4711'');', p_partition);
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'dropped' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is dropped; its rows are in %s', p_partition, v_partition.archive_url),
      hint = format('Bring it back first: select fleet.request_restore(%L);', (v_partition.range_start at time zone 'UTC')::date);
  end if;
  if v_partition.state in ('active', 'restored') then
    perform fleet.bind_range(p_partition);
  end if;
  update fleet.hb_partitions
  set held_reason = p_reason, held_by = session_user
  where partition_name = p_partition;
  perform fleet.record_event('partition.hold', p_partition, p_detail => p_reason);
  return format('partition %s is held: %s', p_partition, p_reason);
end
$$;

comment on function fleet.hold_partition(text, text) is
  'Keeps a partition from being retired, archived or dropped, until released. Example: select fleet.hold_partition(partition_name, ''legal hold'') from fleet.partition_health where range_start <= current_date - 30 and range_end > current_date - 30;';
--! EndIncluded functions/hold_partition.sql
--! Included functions/record_slo.sql
create or replace function fleet.record_slo(p_server text, p_counts json) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.slo_counts as c (slo, minute, server, good, bad)
  select r.slo, r.minute, p_server, r.good, r.bad
  from json_to_recordset(p_counts) as r (slo text, minute timestamptz, good bigint, bad bigint)
  order by r.slo, r.minute
  -- Totals of the minute so far: whoever is not sure that they arrived sends them again.
  on conflict on constraint slo_counts_pkey do update
    set good = greatest(c.good, excluded.good),
      bad = greatest(c.bad, excluded.bad);
$$;

comment on function fleet.record_slo(text, json) is
  'Records what a server process counted for the error budgets: the totals of its minutes, sent every 10 seconds. Recording the same totals again is harmless. Example: select fleet.record_slo(''a'', ''[{"slo":"heartbeat_writes","minute":"now","good":1000,"bad":2}]'');';
--! EndIncluded functions/record_slo.sql
--! Included functions/replay_quarantine.sql
-- Each batch goes through fleet.ingest() again with the time at which it arrived: what is judged otherwise today (its
-- partition is there, max_late was raised) is stored, the rest stays.
create or replace function fleet.replay_quarantine(
  p_from timestamptz default '-infinity',
  p_to timestamptz default 'infinity',
  p_device_id bigint default null,
  out stored bigint,
  out duplicate bigint,
  out remaining bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  v_batch record;
  v_stored bigint;
  v_duplicate bigint;
begin
  if p_from is null or p_to is null or p_from > p_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot replay from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give the first and the last ts in order: select * from fleet.replay_quarantine(current_date - 3, current_date);';
  end if;
  stored := 0;
  duplicate := 0;
  remaining := 0;
  for v_batch in
    select q.received_at,
      -- ts as it was judged: without one in the payload, the time of arrival.
      json_agg(q.payload || jsonb_build_object('device_id', q.device_id, 'ts', q.ts) order by q.device_id, q.ts, q.reason) as items,
      array_agg(q.device_id order by q.device_id, q.ts, q.reason) as device_ids,
      array_agg(q.ts order by q.device_id, q.ts, q.reason) as tss,
      array_agg(q.reason order by q.device_id, q.ts, q.reason) as reasons
    from fleet.heartbeat_quarantine q
    where q.ts >= p_from and q.ts < p_to
      and (p_device_id is null or q.device_id = p_device_id)
      and exists (
        select from fleet.hb_partitions p
        where p.range_start <= q.ts and p.range_end > q.ts and p.state in ('active', 'restored') and p.relid is not null
      )
    group by q.received_at
    order by q.received_at
  loop
    with answered as (
      select i.result, k.device_id, k.ts, k.reason
      from fleet.ingest(v_batch.items, v_batch.received_at) i
      join unnest(v_batch.device_ids, v_batch.tss, v_batch.reasons) with ordinality as k (device_id, ts, reason, item)
        on k.item = i.item
    ),
    gone as (
      delete from fleet.heartbeat_quarantine q
      using answered a
      where a.result in ('stored', 'duplicate') and q.device_id = a.device_id and q.ts = a.ts and q.reason = a.reason
    )
    select count(*) filter (where a.result = 'stored'), count(*) filter (where a.result = 'duplicate')
    into v_stored, v_duplicate
    from answered a;
    stored := stored + v_stored;
    duplicate := duplicate + v_duplicate;
  end loop;

  select count(*) into remaining
  from fleet.heartbeat_quarantine q
  where q.ts >= p_from and q.ts < p_to and (p_device_id is null or q.device_id = p_device_id);
  perform fleet.record_event(
    'quarantine.replay', p_rows => stored, p_detail => format('%s duplicates, %s remaining', duplicate, remaining)
  );
end
$$;

comment on function fleet.replay_quarantine(timestamptz, timestamptz, bigint) is
  'Stores quarantined heartbeats, in order of ts, if their partition now exists (made or restored) and their lateness is now allowed; returns how many were stored, were there already, and remain. Example: select * from fleet.replay_quarantine(current_date - 3, current_date);';
--! EndIncluded functions/replay_quarantine.sql
--! Included functions/request_restore.sql
create or replace function fleet.request_restore(p_from date, p_to date default null) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_to date := coalesce(p_to, p_from);
  v_request_id bigint;
begin
  if p_from is null or p_from > v_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot restore from %s to %s', coalesce(p_from::text, 'null'), coalesce(v_to::text, 'null')),
      hint = 'Give a first and a last day, in order: select fleet.request_restore(current_date - 100, current_date - 98);';
  end if;
  if not exists (
    select from fleet.hb_partitions p
    where p.state = 'dropped' and p.range_start < (v_to + 1)::timestamptz and p.range_end > p_from::timestamptz
  ) then
    raise exception using
      errcode = 'FL404',
      message = format('nothing between %s and %s is in the archive alone', p_from, v_to),
      hint = 'Days that are online, or not dropped yet, need no restore: select * from fleet.data_coverage;';
  end if;

  insert into fleet.restore_requests (from_day, to_day)
  values (p_from, v_to)
  returning request_id into v_request_id;
  insert into fleet.restore_items (request_id, partition_name)
  select v_request_id, p.partition_name
  from fleet.hb_partitions p
  where p.state = 'dropped' and p.range_start < (v_to + 1)::timestamptz and p.range_end > p_from::timestamptz;
  perform pg_notify('fleet_archiver', 'restore');
  return v_request_id;
end
$$;

comment on function fleet.request_restore(date, date) is
  'Asks the archiver to bring archived days back online; returns the number of the request. Follow it in fleet.restore_items. Example: select fleet.request_restore(day) from fleet.data_coverage where "where" = ''archived'' order by day desc limit 1;';
--! EndIncluded functions/request_restore.sql
--! Included functions/roll_up.sql
-- Each statement here sees what was committed before it began: a late arrival is deleted by the statement that counts it, or stays.
create or replace function fleet.roll_up(p_day date, p_now timestamptz default now(), p_late_only boolean default false)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_table regclass := fleet.find_day_table(p_day);
  v_writers text[];
  v_count integer;
begin
  perform fleet.not_in_future(p_now);
  if p_day is null or p_now is null or (p_day + 1)::timestamptz > p_now then
    raise exception using
      errcode = 'FL422',
      message = format('cannot roll up %s, which has not ended', coalesce(p_day::text, 'null')),
      hint = 'Days end at midnight UTC: select fleet.roll_up(current_date - 1);';
  end if;
  if v_table is null then
    raise exception using
      errcode = 'FL002',
      message = format('the heartbeats of %s are not in the database, and cannot be rolled up', p_day),
      hint = format('If the day is archived, bring it back first: select fleet.request_restore(%L);', p_day);
  end if;

  -- One at a time, so that who counted earlier does not write later.
  perform pg_advisory_xact_lock(hashtextextended('fleet.roll_up', 0));
  if p_late_only then
    if not exists (select from fleet.rolled_up_days r where r.day = p_day) then
      return 0;
    end if;
  else
    -- What was inserted before the day's midnight is no late arrival, and may not be committed yet. Looked at rather than
    -- locked out, so that no heartbeat waits.
    v_writers := array(
      select l.virtualtransaction
      from pg_locks l
      where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
    );
    for v_try in 0..100 loop
      exit when not exists (
        select from pg_locks l where l.relation = v_table and l.mode = 'RowExclusiveLock' and l.virtualtransaction = any (v_writers)
      );
      if v_try = 100 then
        raise exception using
          errcode = 'FL003',
          message = format('lock timeout: a transaction has written heartbeats of %s and does not end', p_day),
          hint = 'Find it: select * from fleet.check_sessions(); the next night tries again.';
      end if;
      perform pg_sleep(0.02);
    end loop;
  end if;

  with late as (
    delete from fleet.late_arrivals l
    where l.day = p_day
    returning l.device_id
  ),
  counted as materialized (
    select c.*
    from fleet.availability_of_day(
      p_day, p_now, case when p_late_only then array(select distinct l.device_id from late l) end
    ) c
  ),
  written as (
    insert into fleet.device_availability_daily as a
    select c.*
    from counted c
    on conflict (device_id, day) do update
      set expected = excluded.expected,
        seen = excluded.seen,
        beats = excluded.beats,
        longest_gap = excluded.longest_gap,
        first_ts = excluded.first_ts,
        last_ts = excluded.last_ts,
        rolled_up_at = excluded.rolled_up_at
      where (a.expected, a.seen, a.beats, a.longest_gap, a.first_ts, a.last_ts)
        is distinct from (excluded.expected, excluded.seen, excluded.beats, excluded.longest_gap, excluded.first_ts, excluded.last_ts)
  ),
  gone as (
    delete from fleet.device_availability_daily a
    where a.day = p_day and not p_late_only
      and not exists (select from counted c where c.device_id = a.device_id)
  ),
  noted as (
    insert into fleet.rolled_up_days as r (day, devices)
    select p_day, count(*)
    from counted c
    where not p_late_only
    having not p_late_only
    on conflict (day) do update
      set devices = excluded.devices, rolled_up_at = excluded.rolled_up_at
  )
  select count(*) into v_count from counted;
  return v_count;
end
$$;

comment on function fleet.roll_up(date, timestamptz, boolean) is
  'Counts the availability of each device on one past UTC day, from its heartbeats, into fleet.device_availability_daily; returns the number of devices. With p_late_only, counts again only the devices of a rolled-up day whose heartbeats came late. Run by fleet.nightly() and fleet.maintain(). Example: select fleet.roll_up(current_date - 1);';
--! EndIncluded functions/roll_up.sql
--! Included functions/end_session.sql
create or replace function fleet.end_session(p_session bytea, p_ends_at timestamptz) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from fleet.ended_sessions
  where ends_at < now();
  -- A cookie is valid for half a day, so no session has to be remembered for longer than a day, whatever its end is said to be.
  insert into fleet.ended_sessions (session_hash, ends_at)
  values (p_session, least(p_ends_at, now() + interval '1 day'))
  on conflict (session_hash) do nothing;
end
$$;

comment on function fleet.end_session(bytea, timestamptz) is
  'Ends a session of the ops page on every server. Takes the SHA-256 of the text in its cookie and the time at which it would expire. Called by the server at a logout.';
--! EndIncluded functions/end_session.sql
--! Included functions/is_session_ended.sql
create or replace function fleet.is_session_ended(p_session bytea) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from fleet.ended_sessions e where e.session_hash = p_session);
$$;

comment on function fleet.is_session_ended(bytea) is
  'Whether a session of the ops page was ended by a logout on any server. Takes the SHA-256 of the text in its cookie.';
--! EndIncluded functions/is_session_ended.sql
--! Included functions/end_overdue_readers.sql
create or replace function fleet.end_overdue_readers() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_reader record;
  v_count integer := 0;
begin
  -- The administrator made it at setup, because ending sessions takes a right that the owner does not have.
  if to_regprocedure('fleet_guard.end_overdue_readers(interval, interval, interval)') is null then
    return 0;
  end if;
  for v_reader in execute 'select * from fleet_guard.end_overdue_readers()' loop
    perform fleet.record_event(
      'reader.ended', p_is_ok => v_reader.is_ended,
      p_detail => format('backend %s of %s: %s', v_reader.pid, v_reader.usename, v_reader.reason)
    );
    v_count := v_count + 1;
  end loop;
  return v_count;
exception when insufficient_privilege then
  -- Set up by an administrator who may not end sessions. The caller has other work to do every minute.
  raise warning using message = format('sessions of readers that exceed their time limits are not ended: %s', sqlerrm),
    hint = 'As superuser: psql -f sql/public.sql';
  return 0;
end
$$;

comment on function fleet.end_overdue_readers() is
  'Ends sessions of fleet_reader that lifted their time limits and exceeded them, and records an event reader.ended for each; returns how many. Run each minute by fleet.mark_silent(). Example: select fleet.end_overdue_readers();';
--! EndIncluded functions/end_overdue_readers.sql
--! Included functions/take_index_lock.sql
create or replace function fleet.take_index_lock() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '10s'
as $$
begin
  -- A lock of the session: it is freed when the connection ends.
  perform pg_advisory_lock(hashtext('fleet.archive_index'));
end
$$;

comment on function fleet.take_index_lock() is
  'Takes the lock of the archive''s index.json for this session, waiting at most 10 s. Runs with the owner''s rights, because only the owner may take advisory locks.';
--! EndIncluded functions/take_index_lock.sql
--! Included functions/availability_of_day.sql
-- The one place where availability is counted: a day that is rolled up and one that is not cannot differ. Stable, so that it
-- reads with the snapshot of the statement that calls it: a rebuild counts the rows whose late arrivals it deletes.
create or replace function fleet.availability_of_day(
  p_day date,
  p_now timestamptz default now(),
  p_device_ids bigint[] default null
) returns setof fleet.device_availability_daily
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set work_mem = '64MB'
as $$
declare
  v_table regclass := fleet.find_day_table(p_day);
begin
  perform fleet.not_in_future(p_now);
  if v_table is null then
    return;
  end if;
  -- Planned anew for each call: a few devices are read by the index, all of them in one pass.
  return query execute format(
    $query$
      with roster as materialized (
        select d.device_id, i.heartbeat_interval, (extract(epoch from i.heartbeat_interval) * 1000000)::bigint as interval_us,
          greatest(d.enrolled_at, $1) as since, least(d.revoked_at, $2) as until
        from fleet.devices d
        left join fleet.cohorts c on c.cohort = d.cohort
        left join fleet.device_availability_daily a on a.device_id = d.device_id and a.day = $3
        -- What was asked of the device then: a change of cadence does not rewrite history.
        cross join lateral (
          select coalesce(a.heartbeat_interval, greatest(d.heartbeat_interval, c.min_interval)) as heartbeat_interval
        ) i
        where ($4 is null or d.device_id = any ($4))
          and greatest(d.enrolled_at, $1) < least(d.revoked_at, $2)
      ),
      silences as (
        select b.device_id, b.ts, r.heartbeat_interval, r.interval_us,
          b.ts - lag(b.ts, 1, r.since) over (partition by b.device_id order by b.ts) as silence
        from roster r
        join %s b on b.device_id = r.device_id and b.ts >= r.since and b.ts < r.until
        where b.ts >= $1 and b.ts < $2
      ),
      heard as (
        select s.device_id, count(*) as beats, max(s.silence) as longest, min(s.ts) as first_ts, max(s.ts) as last_ts,
          -- round(silence / interval) - 1, half up. Shorter silences miss none, and most are: they are not divided.
          sum((2 * round(date_part('epoch', s.silence) * 1000000)::bigint + s.interval_us) / (2 * s.interval_us) - 1)
            filter (where s.silence > s.heartbeat_interval) as missed
        from silences s
        group by s.device_id
      )
      select r.device_id, $3, e.expected::integer,
        least(coalesce(h.beats, 0), greatest(e.expected - coalesce(h.missed, 0) - e.missed_last, 0))::integer,
        coalesce(h.beats, 0)::integer, r.heartbeat_interval, greatest(h.longest, e.silence), h.first_ts, h.last_ts, now()
      from roster r
      left join heard h on h.device_id = r.device_id
      cross join lateral (
        select l.silence,
          round(date_part('epoch', r.until - r.since) * 1000000)::bigint / r.interval_us as expected,
          greatest((2 * round(date_part('epoch', l.silence) * 1000000)::bigint + r.interval_us) / (2 * r.interval_us) - 1, 0)
            as missed_last
        from (select r.until - coalesce(h.last_ts, r.since) as silence) l
      ) e
    $query$,
    v_table
  )
  using p_day::timestamptz, least((p_day + 1)::timestamptz, p_now), p_day, p_device_ids;
end
$$;

comment on function fleet.availability_of_day(date, timestamptz, bigint[]) is
  'Availability of devices on one UTC day, counted from its heartbeats; no row where they are not in the database any more. Behind fleet.roll_up() and fleet.device_availability(). Example: select * from fleet.availability_of_day(current_date, now(), array[42]);';
--! EndIncluded functions/availability_of_day.sql
--! Included functions/check_ingest.sql
create or replace function fleet.check_ingest(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  c_sample constant integer := 100;
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_total bigint;
  v_start bigint;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;

  check_name := 'triggers';
  select string_agg(w.name, ', '),
    string_agg(
      case
        when g.oid is null then w.definition
        else format('alter table fleet.%I enable trigger %I;', w.relation, w.name)
      end,
      e'\n'
    )
    -- While it was off, last status was not kept.
    || case when bool_or(w.relation = 'device_heartbeats') then e'\nselect fleet.backfill_last_status(1);' else '' end
  into v_names, v_commands
  from (
    values
      ('device_heartbeats', 'device_heartbeats_record_last_status',
        'create trigger device_heartbeats_record_last_status after insert on fleet.device_heartbeats '
        'referencing new table as new_rows for each statement execute function fleet.record_last_status();'),
      ('hb_partitions', 'hb_partitions_protect',
        'create trigger hb_partitions_protect after insert or update on fleet.hb_partitions '
        'for each row execute function fleet_guard.note_partition();'),
      ('settings', 'settings_audit',
        'create trigger settings_audit after update on fleet.settings for each row execute function fleet.audit_settings();'),
      ('devices', 'devices_forget_marks',
        'create trigger devices_forget_marks after update of heartbeat_interval on fleet.devices '
        'for each statement execute function fleet.forget_marks();')
  ) as w (relation, name, definition)
  left join pg_trigger g on g.tgrelid = to_regclass('fleet.' || w.relation) and g.tgname = w.name
  where g.tgenabled is null or g.tgenabled not in ('O', 'A');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('disabled or missing: ' || v_names, 'all are on');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'last_status';
  select floor(random() * greatest(coalesce(max(d.device_id), 0) - c_sample, 0)) into v_start from fleet.devices d;
  -- One statement stores a heartbeat and moves last status, so that any difference is drift.
  select count(*) filter (where ls.last_ts is null or ls.last_ts < h.ts), count(*) into v_count, v_total
  from (
    select s.device_id
    from fleet.devices s
    where s.device_id > v_start
    order by s.device_id
    limit c_sample
  ) d
  left join fleet.device_last_status ls on ls.device_id = d.device_id
  cross join lateral (
    select b.ts
    from fleet.device_heartbeats b
    where b.device_id = d.device_id and b.ts >= p_now - interval '1 day' and b.ts < p_now + interval '1 day'
    order by b.ts desc
    limit 1
  ) h;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := format('%s of %s devices looked at are behind their newest heartbeat', v_count, v_total);
  remedy := case when v_count > 0 then 'select fleet.backfill_last_status(1);' end;
  return next;

  check_name := 'quarantine';
  select sum(r.n), string_agg(format('%s %s', r.n, r.reason), ', ' order by r.reason),
    string_agg(
      case r.reason
        when 'no_partition' then format('select fleet.create_partitions(%L, %L);', r.first::date, r.last::date)
        -- Beyond the retention nothing is stored.
        when 'too_late' then format(
          'update fleet.settings set max_late = %L;', least(make_interval(days => r.late_days), v_settings.retention)
        )
        else 'select device_id, max(ts - received_at) as ahead from fleet.heartbeat_quarantine '
          'where reason = ''in_future'' group by device_id order by ahead desc limit 50;'
      end,
      e'\n' order by r.reason
    )
  into v_count, v_names, v_commands
  from (
    select q.reason, count(*) as n, min(q.ts) as first, max(q.ts) as last,
      least(ceil(max(extract(epoch from q.received_at - q.ts)) / 86400), 3650)::integer as late_days
    from fleet.heartbeat_quarantine q
    where q.received_at > p_now - interval '1 hour'
    group by q.reason
  ) r;
  status := case when coalesce(v_count, 0) < 100 then 'ok' else 'warn' end;
  detail := format('%s heartbeats in the last hour', coalesce(v_names, 'no'));
  remedy := case
    when status <> 'ok' then concat_ws(
      e'\n', '-- takes them in from now on, and what was kept aside', v_commands, 'select * from fleet.replay_quarantine();'
    )
  end;
  return next;

  check_name := 'quarantine_full';
  select count(*), string_agg(f.device_id::text, ', ' order by f.device_id) filter (where f.nth <= 10) into v_count, v_names
  from (
    select d.device_id, row_number() over (order by d.device_id) as nth
    from (
      (select ls.device_id from fleet.device_last_status ls where ls.status = 'clock_skewed' limit 1000)
      union
      select q.device_id from fleet.heartbeat_quarantine q where q.received_at > p_now - interval '1 hour'
    ) d
    where (
      select count(*)
      from (
        select from fleet.heartbeat_quarantine q where q.device_id = d.device_id limit v_settings.quarantine_per_device
      ) k
    ) >= v_settings.quarantine_per_device
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case when v_count = 0 then 'no device is at its limit'
    else format('%s devices have %s heartbeats there and no more are kept: %s', v_count, v_settings.quarantine_per_device, v_names) end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- keeps more of each; why they are refused: select * from fleet.heartbeat_quarantine',
      format('update fleet.settings set quarantine_per_device = %s;', least(greatest(v_settings.quarantine_per_device, 500) * 2, 100000))
    )
  end;
  return next;

  check_name := 'clocks';
  select count(*) filter (where ls.status = 'clock_skewed'), count(*) into v_count, v_total
  from fleet.device_last_status ls;
  status := case when v_count > 0 and v_count * 100 >= v_total then 'warn' else 'ok' end;
  detail := format('%s of %s devices give a time that is refused', v_count, v_total);
  remedy := case
    when status <> 'ok' then e'-- set the clocks of these; their next heartbeat clears it'
      '\nselect device_id, alias, cohort, last_ts, last_received_at from fleet.device_status '
      'where status = ''clock_skewed'' order by last_received_at desc limit 50;'
  end;
  return next;
end
$$;

comment on function fleet.check_ingest(timestamptz) is
  'What fleet.check() says of heartbeats: triggers, last status (of a sample of devices), quarantine and clocks.';
--! EndIncluded functions/check_ingest.sql
--! Included functions/check_sessions.sql
create or replace function fleet.check_sessions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  v_faults text[];
  v_fault text;
  v_names text;
  v_commands text;
  v_max bigint := current_setting('max_connections')::bigint;
  v_used bigint;
  v_workers bigint;
  v_wanted bigint;
begin
  perform fleet.not_in_future(p_now);
  -- Who holds others up, who works for long, who waits in a transaction: found alike, ended alike.
  foreach v_fault in array array['blocking', 'long_transactions', 'idle_in_transaction'] loop
    check_name := v_fault;
    select string_agg(format('backend %s (%s, %s) for %s: %s', a.pid, a.usename, a.state, a.age, left(a.query, 60)), '; ' order by a.pid),
      case when bool_or(a.is_super) then e'-- as superuser\n' else '' end
      || string_agg(format('select pg_terminate_backend(%s);', a.pid), e'\n' order by a.pid)
    into v_names, v_commands
    from (
      select s.pid, s.usename, coalesce(s.state, s.backend_type) as state, s.query,
        date_trunc('second', greatest(p_now - coalesce(s.xact_start, s.query_start), '0')) as age,
        (select r.rolsuper from pg_roles r where r.oid = s.usesysid) as is_super
      from pg_stat_activity s
      where s.pid <> pg_backend_pid()
        and s.backend_type not in ('autovacuum worker', 'walsender')
        and case v_fault
          when 'long_transactions' then s.xact_start < p_now - interval '1 hour' and s.state is distinct from 'idle in transaction'
          when 'idle_in_transaction' then s.state like 'idle in transaction%' and s.state_change < p_now - interval '10 minutes'
          else s.pid in (
              select b.pid
              from pg_locks w
              cross join unnest(pg_blocking_pids(w.pid)) as b (pid)
              where not w.granted and w.waitstart < p_now - interval '3 seconds'
            )
            -- The first of a queue alone: the others go on when it ends.
            and cardinality(pg_blocking_pids(s.pid)) = 0
        end
    ) a;
    status := case when v_names is null then 'ok' else 'warn' end;
    detail := coalesce(v_names, 'none');
    remedy := v_commands;
    return next;
  end loop;

  check_name := 'prepared_transactions';
  select string_agg(format('%s of %s in %s since %s', x.gid, x.owner, x.database, date_trunc('second', x.prepared)), ', '),
    e'-- as superuser' || string_agg(
      case x.database when current_database() then '' else format(e'\n-- in database %s:', x.database) end
      || format(e'\nrollback prepared %L;', x.gid), '' order by x.database <> current_database(), x.database, x.prepared
    )
  into v_names, v_commands
  from pg_prepared_xacts x
  where x.prepared < p_now - interval '10 minutes';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('forgotten, with its locks: ' || v_names, 'none is forgotten');
  remedy := v_commands;
  return next;

  check_name := 'replication_slots';
  select string_agg(format('%s keeps %s of WAL%s', r.slot_name, pg_size_pretty(r.kept), ' and rows since ' || r.xmin), ', '),
    e'-- as superuser; its replica has to be made anew\n'
    || string_agg(format('select pg_drop_replication_slot(%L);', r.slot_name), e'\n'),
    array_agg(case when r.kept > 4::bigint << 30 then 'fail' else 'warn' end)
  into v_names, v_commands, v_faults
  from (
    select s.slot_name, coalesce(age(s.xmin), age(s.catalog_xmin))::text || ' transactions ago' as xmin,
      pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, s.restart_lsn) as kept
    from pg_replication_slots s
    where not s.active
  ) r
  where r.kept > 256 << 20;
  status := case when v_names is null then 'ok' when 'fail' = any (v_faults) then 'fail' else 'warn' end;
  detail := coalesce('nobody reads ' || v_names, 'none keeps WAL that nobody reads');
  remedy := v_commands;
  return next;

  check_name := 'connections';
  select count(*) filter (where s.backend_type = 'client backend'), count(*) filter (where s.application_name = 'nexmdm listen')
  into v_used, v_workers
  from pg_stat_activity s;
  -- A worker has its pool, of 10 unless POOL_MAX says otherwise, and up to 4 beside it; the rest is for the archiver and people.
  v_wanted := greatest(v_workers * (10 + 4) + 50, ceil(v_used * 1.3));
  status := case when v_used >= 0.95 * v_max then 'fail' when v_used >= 0.8 * v_max or v_wanted > v_max then 'warn' else 'ok' end;
  detail := format('%s of %s in use; %s workers of the server may want %s', v_used, v_max, v_workers, v_wanted);
  remedy := case
    when status <> 'ok' then format(
      e'-- as superuser; then restart Postgres: pg_ctl restart -m fast -D ''%s''\nalter system set max_connections = %s;',
      v_directory, greatest(v_wanted, v_max) + 50
    )
  end;
  return next;
end
$$;

comment on function fleet.check_sessions(timestamptz) is
  'What fleet.check() says of sessions: who blocks others, long transactions, forgotten prepared ones, replication slots, connections.';
--! EndIncluded functions/check_sessions.sql
--! Included functions/check_silence.sql
create or replace function fleet.check_silence(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_newest timestamptz;
  v_names text;
  v_commands text;
  v_is_fleet boolean;
  v_muted text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'heartbeats';
  select max(ls.last_received_at) into v_newest from fleet.device_last_status ls;
  status := 'ok'; detail := coalesce('the last one came ' || date_trunc('second', p_now - v_newest) || ' ago', 'none yet'); remedy := null;
  if fleet.is_ingest_down(v_newest, p_now) then
    status := 'fail'; detail := format('none from any device for %s: the servers, what stands before them, or the network', date_trunc('second', p_now - v_newest));
    remedy := e'-- is a server connected? If not, start it (npm run server); if so: RUNBOOK.md, "Heartbeats are refused"'
      '\nselect usename, application_name, state, count(*) from pg_stat_activity where usename like ''fleet%'' group by 1, 2, 3 order by 1, 2, 3;';
  end if;
  return next;

  check_name := 'silent_cohorts';
  select
    string_agg(
      format(
        '%s: %s of %s devices since %s, usually %s %%',
        a.cohort, a.gone_quiet, a.active, to_char(a.window_start, 'HH24:MI'), round((100 * a.usual_share)::numeric)
      ),
      '; ' order by a.place
    ) filter (where a.is_alarming),
    string_agg(
      format(
        'select device_id, alias, last_ts, network_type, agent_version, ip from fleet.device_status where %sstatus in (''late'', ''offline'') '
        'order by last_ts desc limit 50;',
        case when a.place > 1 then format('cohort = %L and ', a.cohort) end
      ),
      e'\n' order by a.place
    ) filter (where a.is_alarming),
    bool_or(a.is_alarming and a.place = 1),
    max(a.muted_reason) filter (where a.place = 1 and a.muted_reason in ('ingest_down', 'ingest_resumed', 'unwatched'))
  into v_names, v_commands, v_is_fleet, v_muted
  from (select l.*, row_number() over () as place from fleet.silence_at(p_now) l) a;
  status := case when v_names is null then 'ok' when v_is_fleet then 'fail' else 'warn' end;
  detail := coalesce(
    'gone quiet: ' || v_names,
    format('not judged: %s', v_muted),
    'no more devices have gone quiet than usual'
  );
  remedy := e'-- what do these share: a place, a network, a version? They are well when they are heard of again\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_silence(timestamptz) is
  'What fleet.check() says of silence: no heartbeat from anybody, and cohorts of which more devices have gone quiet than usual.';
--! EndIncluded functions/check_silence.sql
--! Included functions/check_storage.sql
create or replace function fleet.check_storage(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_dead bigint;
  v_live bigint;
  v_age bigint;
  v_limit bigint := current_setting('autovacuum_freeze_max_age')::bigint;
  v_last bigint;
  v_usual bigint;
  v_wal bigint;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;

  check_name := 'autovacuum';
  select string_agg(c.relname, ', '), string_agg(format('alter table fleet.%I reset (autovacuum_enabled);', c.relname), e'\n')
  into v_names, v_commands
  from pg_class c
  where c.reloptions && array['autovacuum_enabled=false', 'autovacuum_enabled=off', 'autovacuum_enabled=0', 'autovacuum_enabled=no']
    and (
      c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and not c.relispartition
      or c.oid in (select a.relid from fleet.attached_partitions() a where a.range_end > p_now)
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('switched off for ' || v_names, 'it is on where rows change');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'dead_rows';
  v_dead := pg_stat_get_dead_tuples('fleet.device_last_status'::regclass);
  v_live := pg_stat_get_live_tuples('fleet.device_last_status'::regclass);
  status := case when v_dead > 5000 + v_live then 'warn' else 'ok' end;
  detail := format('device_last_status has %s dead rows beside %s', v_dead, v_live);
  remedy := case when status <> 'ok' then e'-- as fleet_owner\nvacuum (analyze) fleet.device_last_status;' end;
  return next;

  check_name := 'partitions_vacuumed';
  -- By the visibility map: the statistics on vacuums are lost in a crash. Small ones do not matter.
  select string_agg(a.partition_name, ', ' order by a.range_start),
    string_agg(format('vacuum (analyze) fleet.%I;', a.partition_name), e'\n' order by a.range_start)
  into v_names, v_commands
  from fleet.attached_partitions() a
  join pg_class c on c.oid = a.relid
  where a.range_end between p_now - interval '7 days' and p_now - interval '1 day'
    and pg_relation_size(a.relid) > 1 << 20
    and c.relallvisible * current_setting('block_size')::bigint < pg_relation_size(a.relid) / 2;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past, and not vacuumed since: ' || v_names, 'the last days are vacuumed and analyzed');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'wraparound';
  select age(d.datfrozenxid) into v_age from pg_database d where d.datname = current_database();
  status := case when v_age > 1500000000 then 'fail' when v_age > v_limit * 1.5 then 'warn' else 'ok' end;
  detail := format('the oldest row is %s transactions old; autovacuum freezes at %s, Postgres stops at 2 billion', v_age, v_limit);
  if status <> 'ok' then
    select string_agg(format('vacuum (freeze) %s;', o.relid), e'\n' order by o.age desc) into v_commands
    from (
      select c.oid::regclass as relid, age(c.relfrozenxid) as age
      from pg_class c
      where c.relkind in ('r', 'm', 't') and age(c.relfrozenxid) > v_limit
      order by 2 desc
      limit 50
    ) o;
  end if;
  remedy := case when status <> 'ok' then e'-- as superuser; the oldest 50 tables, again until this is ok\n' || v_commands end;
  return next;

  check_name := 'disk';
  select avg(g.bytes_online) filter (where g.day between p_now::date - 8 and p_now::date - 2),
    max(g.bytes_online) filter (where g.day = p_now::date - 1)
  into v_usual, v_last
  from fleet.storage_growth g;
  begin
    select sum(w.size) into v_wal from pg_ls_waldir() w;
  exception when insufficient_privilege then
    v_wal := null;
  end;
  -- The free space of a disk is nothing that Postgres can ask for.
  status := case when v_last > 1 << 30 and v_last > 2 * v_usual then 'warn' else 'ok' end;
  detail := format(
    'the database has %s, WAL %s; yesterday''s heartbeats %s, a day before it %s on average, %s for a whole retention; free space is not seen from here',
    pg_size_pretty(pg_database_size(current_database())),
    coalesce(pg_size_pretty(v_wal), '?'),
    pg_size_pretty(coalesce(v_last, 0)), pg_size_pretty(coalesce(v_usual, 0)),
    pg_size_pretty((coalesce(greatest(v_last, v_usual), 0) * extract(epoch from v_settings.retention) / 86400)::bigint)
  );
  remedy := case
    when status <> 'ok' then format(
      e'# in a shell: is there room for the retention at this rate? If not: select fleet.set_retention(…); add disk\ndf -h ''%s''',
      v_directory
    )
  end;
  return next;
end
$$;

comment on function fleet.check_storage(timestamptz) is
  'What fleet.check() says of tables on disk: autovacuum, dead rows, wraparound, size and growth.';
--! EndIncluded functions/check_storage.sql
--! Included functions/device_day.sql
create or replace function fleet.device_day(p_device_id bigint, p_now timestamptz default now())
returns table (span_start timestamptz, beats integer, unity_down integer, battery_pct numeric, signal_dbm numeric)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with spans as (
    select generate_series(last.span - interval '23 hours 50 minutes', last.span, interval '10 minutes') as span
    from (select date_bin('10 minutes', fleet.not_in_future(p_now), '2000-01-01 00:00:00+00') as span) last
  ),
  beats as (
    select date_bin('10 minutes', h.ts, '2000-01-01 00:00:00+00') as span, count(*) as beats,
      count(*) filter (where not h.unity_running) as unity_down, avg(h.battery_pct) as battery_pct, avg(h.signal_dbm) as signal_dbm
    from fleet.device_heartbeats h
    where h.device_id = p_device_id
      and h.ts >= date_bin('10 minutes', p_now, '2000-01-01 00:00:00+00') - interval '23 hours 50 minutes'
      and h.ts <= p_now
    group by 1
  )
  select s.span, coalesce(b.beats, 0)::integer, coalesce(b.unity_down, 0)::integer, round(b.battery_pct, 1), round(b.signal_dbm, 1)
  from spans s
  left join beats b using (span)
  order by s.span
$$;

comment on function fleet.device_day(bigint, timestamptz) is
  'The last 24 hours of a device in spans of ten minutes, oldest first: heartbeats, those with Unity down, and the means of battery and signal (null without a heartbeat). Example: select * from fleet.device_day(42) where beats = 0;';
--! EndIncluded functions/device_day.sql
--! Included functions/end_run.sql
create or replace function fleet.end_run(p_run_id bigint) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_start fleet.events;
  v_failed integer;
begin
  select e.* into v_start
  from fleet.events e
  where e.run_id = p_run_id and e.event in ('nightly.start', 'maintain.start')
    and exists (select from fleet.lock_holders('maintenance') h where h = pg_backend_pid());
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('run %s of maintenance is not running in this session', coalesce(p_run_id::text, 'null')),
      hint = 'call fleet.nightly(); and call fleet.maintain(); begin and end their runs themselves.';
  end if;
  v_failed := (
    select count(*) from fleet.events e where e.run_id = p_run_id and e.event like 'maintenance.%' and not e.is_ok
  );
  delete from fleet.planned_steps s where s.run_id = p_run_id;
  perform fleet.record_event(
    split_part(v_start.event, '.', 1) || '.end', p_run_id => p_run_id, p_is_ok => v_failed = 0,
    p_detail => case when v_failed > 0 then format('%s steps failed', v_failed) end,
    p_duration_ms => fleet.elapsed_ms(v_start.at)
  );
  perform pg_advisory_unlock(hashtextextended('fleet.maintenance', 0));
  if v_failed > 0 then
    raise warning using
      message = format('%s steps of run %s failed', v_failed, p_run_id),
      hint = format('See select * from fleet.run_steps(%s) where not ok;', p_run_id);
  end if;
end
$$;

comment on function fleet.end_run(bigint) is 'Ends a run of maintenance of this session, records how it went and frees its lock.';
--! EndIncluded functions/end_run.sql
--! Included functions/ingest.sql
create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off  -- measured: compiling took a batch from 140 to 4 a second
as $$
#variable_conflict use_column
declare
  v_results text[];
  v_reasons text[];
  v_tss timestamptz[];
  v_device_ids bigint[];
begin
  if p_received_at > now() then
    perform fleet.not_in_future(p_received_at);
  end if;
  -- Twice at most: a partition can be retired between the look at fleet.hb_partitions and the insert (23514).
  for v_try in 1..2 loop
    begin
      with given as materialized (
        select i.item, i.device_id, coalesce(i.ts, p_received_at) as ts, i.battery_pct, i.network_type, i.unity_running,
          i.signal_dbm, i.agent_version,
          case s.store_ip
            when 'full' then i.ip
            when 'prefix' then network(set_masklen(i.ip, case family(i.ip) when 4 then 24 else 48 end))::inet
          end as ip,
          p_received_at - least(s.max_late, s.retention) as oldest,
          p_received_at + s.max_future as newest
        from rows from (
          json_to_recordset(p_batch) as (
            device_id bigint, ts timestamptz, battery_pct smallint, network_type text, unity_running boolean,
            signal_dbm smallint, agent_version text, ip inet
          )
        ) with ordinality as i (
          device_id, ts, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, item
        )
        cross join fleet.settings s
      ),
      days as materialized (  -- bounds are UTC midnights, so a day is wholly inside a partition or outside
        select d.day,
          exists (
            select from fleet.hb_partitions p
            where p.range_start <= d.day and p.range_end > d.day
              and p.state in ('active', 'restored') and p.relid is not null
          ) as has_partition
        from (select distinct date_trunc('day', g.ts) as day from given g where g.ts between g.oldest and g.newest) d
      ),
      judged as materialized (
        select g.*,
          case
            when g.ts < g.oldest then 'too_late'
            when g.ts > g.newest then 'in_future'
            when not d.has_partition then 'no_partition'
          end as reason,
          row_number() over (
            partition by
              g.device_id,
              date_bin('10 seconds', g.ts, timestamptz '2000-01-01 00:00:00+00'),
              g.ts between g.oldest and g.newest  -- a refused neighbour takes no bucket
            order by g.item
          ) = 1 as is_first
        from given g
        left join days d on d.day = date_trunc('day', g.ts)
      ),
      stored as (
        insert into fleet.device_heartbeats (
          ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip
        )
        select j.ts, p_received_at, j.device_id, j.signal_dbm, j.battery_pct, j.unity_running, j.network_type,
          j.agent_version, j.ip
        from judged j
        where j.reason is null and j.is_first
        order by j.device_id, j.ts  -- the same order in every batch: no deadlock
        on conflict do nothing
        returning device_id, ts
      )
      select
        array_agg(case when j.reason is null then case when s.ts is null then 'duplicate' else 'stored' end end order by j.item),
        array_agg(j.reason order by j.item),
        array_agg(j.ts order by j.item),
        array_agg(j.device_id order by j.item)
      into v_results, v_reasons, v_tss, v_device_ids
      from judged j
      left join stored s on s.device_id = j.device_id and s.ts = j.ts and j.is_first;
      exit;
    exception when check_violation then
      if v_try = 2 then
        raise;
      end if;
      perform fleet.sync_partitions();
    end;
  end loop;

  -- After the heartbeats and last status, in every batch: locks are taken in one order, so that batches do not deadlock.
  if array_position(v_results, null) is not null then
    v_results := fleet.quarantine(p_batch, p_received_at, v_device_ids, v_tss, v_reasons, v_results);
  end if;

  return query
    select u.item::integer, u.result, case u.result when 'rejected' then 'quarantine_full' else u.reason end, u.ts
    from unnest(v_results, v_reasons, v_tss) with ordinality as u (result, reason, ts, item);
end
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement: a JSON array of {device_id, ts, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip}. Answers each item in order: stored, duplicate (same device and 10-second bucket), quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded functions/ingest.sql
--! Included functions/is_night_missed.sql
create or replace function fleet.is_night_missed(p_now timestamptz default now()) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.not_in_future(p_now);
  return not exists (
      select from fleet.events e
      where e.event = 'nightly.start' and e.at > p_now - interval '25 hours'
    )
    -- A new store waits for its first night.
    and exists (select from fleet.hb_partitions p where p.created_at <= p_now - interval '25 hours');
end
$$;

comment on function fleet.is_night_missed(timestamptz) is
  'True when fleet.nightly() was not begun for 25 hours: fleet.maintain() then makes up for it.';
--! EndIncluded functions/is_night_missed.sql
--! Included functions/nightly_plan.sql
create or replace function fleet.nightly_plan(p_retention interval default null, p_now timestamptz default now())
returns table (step text, partition_name text, detail text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  (
    select 'premake', null::text, format('make the partition of %s', d.day::date)
    from fleet.settings s
    cross join generate_series(
      fleet.not_in_future(p_now)::date::timestamptz, p_now::date + s.premake_days * interval '1 day', interval '1 day'
    ) as d (day)
    where not exists (
      select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day
    )
    order by d.day
  )
  union all
  (
    select 'roll_up', r.partition_name, format('roll up %s', r.day)
    from fleet.rollup_plan(p_now) r
    where r.action = 'roll_up' and r.state in ('active', 'restored')
    order by r.day
  )
  union all
  select 'retire', r.partition_name, r.reason
  from fleet.retention_plan(p_retention, p_now) r
  where r.action = 'retire'
  union all
  select 'hold', r.partition_name, r.reason
  from fleet.retention_plan(p_retention, p_now) r
  where r.action = 'hold'
  union all
  (
    select 'archive', p.partition_name, format('state %s%s', p.state, ': ' || p.last_error)
    from fleet.hb_partitions p
    where p.state in ('detached', 'archiving', 'archive_failed', 'archived')
    order by p.range_start
  );
$$;

comment on function fleet.nightly_plan(interval, timestamptz) is
  'The dry run of fleet.nightly(): what it would make, roll up, retire and leave to the archiver; changes nothing. Example: select * from fleet.nightly_plan(''60 days'');';
--! EndIncluded functions/nightly_plan.sql
--! Included functions/run_next_step.sql
create or replace function fleet.run_next_step(p_run_id bigint, p_attempt integer default 1) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_next fleet.planned_steps;
  v_since timestamptz := clock_timestamp();
  v_count bigint;
  v_error text;
begin
  loop
    select s.* into v_next
    from fleet.planned_steps s
    -- Only for the session that planned the steps and still has the lock.
    where s.run_id = p_run_id and s.pid = pg_backend_pid()
      and exists (select from fleet.lock_holders('maintenance') h where h = pg_backend_pid())
    order by s.position
    limit 1;
    if not found then
      return 'over';
    end if;
    exit when v_next.step not like 'plan\_%';

    insert into fleet.planned_steps (run_id, position, step, partition_name, day, retention, as_of, pid)
    select p_run_id, v_next.position + d.position, d.step, d.partition_name, d.day, v_next.retention, v_next.as_of, v_next.pid
    from (
      select r.action as step, r.partition_name, r.day, row_number() over (order by r.day) as position
      from fleet.rollup_plan(v_next.as_of) r
      where v_next.step = 'plan_' || r.action and r.state in ('active', 'restored')
      union all
      select 'retire', r.partition_name, null, row_number() over (order by r.range_start)
      from fleet.retention_plan(v_next.retention, v_next.as_of) r
      where v_next.step = 'plan_retire' and r.action = 'retire'
    ) d;
    delete from fleet.planned_steps s where s.run_id = p_run_id and s.position = v_next.position;
  end loop;

  begin
    perform set_config('fleet.run_id', p_run_id::text, true);
    v_count := fleet.do_step(v_next.step, v_next.partition_name, v_next.as_of, v_next.day);
  exception when others then
    v_error := sqlerrm;
  end;
  -- pg_partman reports a lock timeout under another error code, so its message decides.
  if v_error like '%lock timeout%' and p_attempt < 5 then
    return 'busy';
  end if;

  if v_error is not null and v_next.step = 'premake' then
    perform fleet.count_up('partition_create_failures_total');
  end if;
  perform fleet.record_event(
    'maintenance.' || v_next.step, v_next.partition_name, v_count, fleet.elapsed_ms(v_since),
    nullif(concat_ws(': ', v_next.day, v_error), ''), v_error is null, p_run_id
  );
  delete from fleet.planned_steps s where s.run_id = p_run_id and s.position = v_next.position;
  return case when v_error is null then 'done' else 'failed' end;
end
$$;

comment on function fleet.run_next_step(bigint, integer) is
  'Runs the next step that fleet.begin_run() planned for this run in this session, and records it in fleet.events. Returns done, failed, busy (a lock was not available: commit, wait and call again) or over.';
--! EndIncluded functions/run_next_step.sql
--! Included functions/set_cadence.sql
create or replace function fleet.set_cadence(p_cadence text, p_now timestamptz default now()) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_settings fleet.settings;
  v_end date;
  v_first date;
begin
  perform fleet.not_in_future(p_now);
  if p_cadence is null or p_cadence not in ('daily', 'monthly') then
    raise exception using
      errcode = 'FL422',
      message = format('cadence %s is neither daily nor monthly', coalesce(p_cadence, 'null')),
      hint = 'Example: select fleet.set_cadence(''daily''); see first: select * from fleet.recommend_cadence();';
  end if;
  select * into strict v_settings from fleet.settings for update;
  if v_settings.cadence = p_cadence then
    return format('the cadence is %s already', p_cadence);
  end if;

  -- Up to here there are partitions; nothing that exists is changed.
  perform fleet.sync_partitions();
  select greatest(max(a.range_end)::date, p_now::date) into v_end from fleet.attached_partitions() a;
  v_first := v_end;
  if p_cadence = 'monthly' and v_end <> date_trunc('month', v_end) then
    v_first := (date_trunc('month', v_end) + interval '1 month')::date;
    perform fleet.create_partitions(v_end, v_first - 1);
  end if;

  update fleet.settings set cadence = p_cadence;
  perform fleet.configure_partman();
  -- The first of the new width, from which pg_partman counts on.
  perform fleet.create_partitions(v_first, greatest(v_first, p_now::date + v_settings.premake_days));
  return format('cadence %s (was %s) from %s on; partitions before that stay as they are', p_cadence, v_settings.cadence, v_first);
end
$$;

comment on function fleet.set_cadence(text, timestamptz) is
  'Sets whether partitions hold a day or a month, from the first day that has none yet (monthly: from the first whole month). Example: select fleet.set_cadence(''monthly'');';
--! EndIncluded functions/set_cadence.sql
--! Included functions/silence_at.sql
create or replace function fleet.silence_at(p_now timestamptz)
returns table (
  cohort text, devices bigint, active bigint, gone_quiet bigint, share double precision, usual_share double precision,
  ratio double precision, is_alarming boolean, is_muted boolean, muted_reason text, window_start timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with ingest as materialized (
    select
      case
        when fleet.is_ingest_down((select max(l.last_received_at) from fleet.device_last_status l), fleet.not_in_future(p_now)) then 'ingest_down'
        when p_now < w.gap_to + s.silence_window or w.gap_from is not null and w.gap_to is null
          or pg_postmaster_start_time() > w.looked_at then 'ingest_resumed'
        when w.looked_at < p_now - s.ingest_gap then 'unwatched'
      end as muted_reason,
      -- Who fell silent while nothing could be heard has not been looked at yet: for one more window the gap belongs to it.
      least(case when p_now < w.gap_to + 2 * s.silence_window then w.gap_from end, p_now - s.silence_window) as window_start
    from fleet.settings s
    cross join fleet.silence_watch w
  ),
  -- By how much each is overdue: worked out once, hence OFFSET 0.
  heard as (
    select d.cohort,
      -- A heartbeat that is refused for its time is heard all the same.
      p_now - case when ls.status = 'clock_skewed' then ls.last_received_at else ls.last_ts end - fleet.late_after(
        fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now)
      ) as overdue
    from fleet.devices d
    left join fleet.device_last_status ls using (device_id)
    left join fleet.cohorts c on c.cohort = d.cohort
    where d.revoked_at is null
    offset 0
  ),
  counted as (
    select h.cohort, count(*) as devices,
      count(*) filter (where h.overdue <= (select p_now - i.window_start from ingest i)) as active,
      count(*) filter (
        where h.overdue > interval '0' and h.overdue <= (select p_now - i.window_start from ingest i)
      ) as gone_quiet
    from heard h
    group by h.cohort
  ),
  summed as (
    select coalesce(k.cohort, '(all)') as cohort, grouping(k.cohort) as is_all,
      coalesce(sum(k.devices), 0)::bigint as devices, coalesce(sum(k.active), 0)::bigint as active,
      coalesce(sum(k.gone_quiet), 0)::bigint as gone_quiet
    from counted k
    group by grouping sets ((k.cohort), ())
  )
  select m.cohort, m.devices, m.active, m.gone_quiet, r.share, u.usual_share, r.share / nullif(u.usual_share, 0),
    r.muted_reason is null and m.gone_quiet >= s.silence_min_devices and r.share >= s.silence_share
      and r.share >= s.silence_ratio * u.usual_share,
    r.muted_reason is not null, r.muted_reason, i.window_start
  from summed m
  cross join ingest i
  cross join fleet.settings s
  left join fleet.silence_usual u on u.cohort = m.cohort
  cross join lateral (
    select m.gone_quiet / nullif(m.active, 0)::double precision as share,
      case
        when i.muted_reason is not null then i.muted_reason
        when m.active < s.silence_min_devices then 'few_devices'
        -- A day of samples: who has not seen a night knows nothing of nights.
        when u.usual_share is null or u.samples < 144 then 'few_samples'
      end as muted_reason
  ) r
  order by m.is_all desc, m.cohort;
$$;

comment on function fleet.silence_at(timestamptz) is
  'fleet.fleet_silence at a given time, by what is known now. Defined in docs/decisions/0017. Example: select * from fleet.silence_at(now());';
--! EndIncluded functions/silence_at.sql
--! Included functions/check_archive_place.sql
-- A range in the future would prevent its partitions from being made, and the archiver would fetch a URL outside the known stores.
create or replace function fleet.check_archive_place(p_range_start timestamptz, p_range_end timestamptz, p_archive_url text)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_day text;
  v_root text;
  v_known text[];
begin
  if p_range_start is null or p_range_end is null or not isfinite(p_range_start) or not isfinite(p_range_end)
    or p_range_start <> date_trunc('day', p_range_start) or p_range_end > clock_timestamp()
    or p_range_end not in (
      p_range_start + interval '1 day',
      p_range_start + case when p_range_start = date_trunc('month', p_range_start) then interval '1 month' else interval '1 day' end
    ) then
    raise exception using
      errcode = 'FL422',
      message = format('the archive of %s to %s is not registered: its range is not a past UTC day or month', p_range_start, p_range_end),
      hint = 'The range is in the manifest of the archive.';
  end if;
  v_day := to_char(p_range_start, 'YYYY-MM-DD');
  v_root := substring(
    p_archive_url
    from '^((?:file:///|s3://[^/]).*)/device_heartbeats/date=' || v_day || '/device_heartbeats_[0-9]+(?:_r[0-9]+)?\.parquet$'
  );
  if v_root is null or v_root ~ '(^|/)\.\.?(/|$)' then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a valid place for the archive of %s', coalesce(p_archive_url, 'null'), v_day),
      hint = format('The place is <store>/device_heartbeats/date=%s/device_heartbeats_%s.parquet.', v_day, to_char(p_range_start, 'YYYYMMDD'));
  end if;
  -- Where no store is known yet, the first archive decides which one it is.
  select array_agg(distinct s.url) into v_known
  from (
    select substring(p.archive_url from '^(.*)/device_heartbeats/date=') as url
    from fleet.hb_partitions p
    where p.archive_url is not null
    union all
    select unnest(k.archive_stores) from fleet.settings k
  ) s
  where s.url is not null;
  if v_root <> all (v_known) then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a known store of this database (%s); nothing is registered', v_root, array_to_string(v_known, ', ')),
      hint = format('If you trust this store: update fleet.settings set archive_stores = archive_stores || %L;', v_root);
  end if;
end
$$;

comment on function fleet.check_archive_place(timestamptz, timestamptz, text) is
  'Raises an error unless the archive to register covers a past UTC day or month and lies at its proper place in a known store.';
--! EndIncluded functions/check_archive_place.sql
--! Included functions/count_retired.sql
-- Counts, with the owner's rights, what a drop relies on. The archiver says what it copied, and that is compared with this count.
create or replace function fleet.count_retired(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_columns jsonb default null,
  p_checksum_version integer default 1,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_variable
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_columns jsonb;
  v_hash numeric;
begin
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is not null then
    -- Nobody may write to the table since it was detached. Counting a large day takes many seconds, so it happens before the row is
    -- locked, and the archiver can renew its lease meanwhile.
    select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) into v_columns
    from fleet.archive_columns(v_table) c;
    select s.row_count, s.content_checksum, s.min_ts, s.max_ts
    into row_count, content_checksum, min_ts, max_ts
    from fleet.content_checksum(v_table, v_columns, p_checksum_version) s;
    v_hash := fleet.rows_hash(v_table);
  end if;

  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s has no table to archive', p_partition),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if p_row_count is distinct from row_count or coalesce(p_columns, v_columns) <> v_columns then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s has %s rows, but %s says that it copied %s; nothing is archived',
        p_partition, row_count, p_worker, coalesce(p_row_count::text, 'nothing')
      ),
      detail = format('columns of the table: %s; columns copied: %s', v_columns, coalesce(p_columns, v_columns)),
      hint = format(
        'The table was changed while it was copied, or the archiver cannot be trusted. Hold it while you look: '
        'select fleet.hold_partition(%L, ''why'');', p_partition
      );
  end if;
  if min_ts < v_partition.range_start or max_ts >= v_partition.range_end then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s covers %s to %s, but its rows range from %s to %s', p_partition, v_partition.range_start, v_partition.range_end, min_ts, max_ts
      ),
      hint = format('The table was changed after it was retired. Hold it while you look: select fleet.hold_partition(%L, ''why'');', p_partition);
  end if;
  update fleet.hb_partitions p
  set counted = jsonb_build_object(
    'row_count', count_retired.row_count, 'content_checksum', count_retired.content_checksum::text, 'min_ts', count_retired.min_ts,
    'max_ts', count_retired.max_ts, 'columns', v_columns, 'checksum_version', p_checksum_version,
    'rows_hash', v_hash::text
  )
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.count_retired(text, text, bigint, jsonb, integer) is
  'Archiving: counts the rows of a retired table and computes their checksum with the owner''s rights, compares them with what the archiver says that it copied, then records and returns them. Later proofs and the drop are compared with this.';
--! EndIncluded functions/count_retired.sql
--! Included functions/confirm_archive.sql
-- The archiver gives the first proof. If settings.proofs_needed is 2, nothing is dropped on the archiver's word alone.
create or replace function fleet.confirm_archive(
  p_partition text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  -- The login decides, not the current role: a login that can act as the archiver cannot give a second proof.
  if pg_has_role(session_user, 'fleet_archiver', 'member') then
    raise exception using
      errcode = 'FL002',
      message = format('%s may act as the archiver, so it cannot confirm what the archiver proved', session_user),
      hint = 'Confirm with a login that is a member of fleet_verifier and of no other role of the store.';
  end if;
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'archived' then
    raise exception using
      errcode = 'FL002',
      message = format(
        'partition %s is %s; an archive can be confirmed only while its partition is archived and not dropped', p_partition, v_partition.state
      ),
      hint = format('See select * from fleet.archives where partition_name = %L;', p_partition);
  end if;
  if (p_checksum_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.content_checksum, v_partition.row_count, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the archive of %s, as %s read it, differs from what was archived; the partition is kept', p_partition, session_user),
      detail = format(
        'sha256 %s, read %s; content checksum %s, read %s; rows %s, read %s; from %s to %s, read %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256, v_partition.content_checksum, p_content_checksum,
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = format('Keep the partition until this is resolved: select fleet.hold_partition(%L, ''its archive differs'');', p_partition);
  end if;
  if v_partition.confirmed_at is not null then
    return false;
  end if;
  update fleet.hb_partitions
  set confirmed_at = now(), confirmed_by = session_user
  where partition_name = p_partition;
  perform fleet.record_event('partition.archive.confirm', p_partition, p_row_count, p_detail => session_user::text);
  perform pg_notify('fleet_archiver', p_partition);
  return true;
end
$$;

comment on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz) is
  'Records that a second login read the archive back and found these rows; false if it was confirmed before. Required before a drop if settings.proofs_needed is 2. Used by: npm run archive -- confirm.';
--! EndIncluded functions/confirm_archive.sql
--! Included functions/record_proof.sql
create or replace function fleet.record_proof(
  p_partition text,
  p_worker text,
  p_checksum_sha256 text,
  p_content_checksum numeric,
  p_row_count bigint,
  p_min_ts timestamptz,
  p_max_ts timestamptz
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_partition.step is distinct from 'uploaded' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is at step %s; it is uploaded before it is proven', p_partition, v_partition.step);
  end if;
  if (p_checksum_sha256, p_content_checksum, p_row_count, p_min_ts, p_max_ts) is distinct from (
    v_partition.checksum_sha256, v_partition.content_checksum, v_partition.row_count, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the archive of %s read back differs from its rows; the partition is kept', p_partition),
      detail = format(
        'sha256 %s, read back %s; content checksum %s, read back %s; rows %s, read back %s; from %s to %s, read back %s to %s',
        v_partition.checksum_sha256, p_checksum_sha256, v_partition.content_checksum, p_content_checksum,
        v_partition.row_count, p_row_count, v_partition.min_ts, v_partition.max_ts, p_min_ts, p_max_ts
      ),
      hint = 'The next attempt exports and uploads it anew. If it happens again, check the object store.';
  end if;
  update fleet.hb_partitions
  set step = 'proven', state = 'archived', proven_at = now(), archived_at = now(), attempts = 0, next_attempt_at = null,
    confirmed_at = null, confirmed_by = null,
    last_error = null
  where partition_name = p_partition;
  perform fleet.count_up('partitions_archived_total');
  perform fleet.count_up('hb_partition_archived_total');
  perform fleet.record_event(
    'partition.archive.end', p_partition, p_row_count, p_detail => v_partition.archive_url,
    p_duration_ms => fleet.elapsed_ms(coalesce(
      (
        select max(e.at) from fleet.events e
        where e.event = 'partition.archive.start' and e.partition_name = p_partition
      ),
      clock_timestamp()
    ))
  );
end
$$;

comment on function fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz) is
  'Archiving, step proven: compares what was read back from the store with what was exported, and only if all is equal sets state archived.';
--! EndIncluded functions/record_proof.sql
--! Included functions/make_read_only.sql
-- The archiver may read and owns nothing, because the owner of a table can grant itself every right on it.
create or replace function fleet.make_read_only(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'revoke all on fleet_detached.%I from public, fleet_owner, fleet_server, fleet_archiver, fleet_reader, fleet_dba', p_partition
  );
  execute format('grant select on fleet_detached.%I to fleet_owner, fleet_archiver, fleet_dba, fleet_reader', p_partition);
  -- For VACUUM. Before PostgreSQL 17 only the owner may run it, in the job fleet-freeze; since then the owner needs the right too,
  -- and it was revoked above with the others.
  if current_setting('server_version_num')::integer >= 170000 then
    execute format('grant maintain on fleet_detached.%I to fleet_owner, fleet_archiver', p_partition);
  end if;
end
$$;

comment on function fleet.make_read_only(text) is
  'Lets the archiver, the DBA and readers read a retired table, and nobody write to it.';
--! EndIncluded functions/make_read_only.sql
--! Included functions/postgres_started_at.sql
create or replace function fleet.postgres_started_at() returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select pg_postmaster_start_time();
$$;

comment on function fleet.postgres_started_at() is
  'When Postgres started: no job can be blamed for not running before. Example: select now() - fleet.postgres_started_at();';
--! EndIncluded functions/postgres_started_at.sql
--! Included functions/list_devices.sql
-- One page by keyset. Built per call: which index serves depends on the arguments, and a plan for all of them serves none.
create or replace function fleet.list_devices(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
-- In order by an index, to the page's end and no further: a guess of too few rows must not make it read the whole table.
set enable_bitmapscan = off
set max_parallel_workers_per_gather = 0
set random_page_cost = 1
as $$
declare
  v_found text := 'select ls.device_id from fleet.device_last_status ls where ls.device_id > $3';
  v_filter text := ' where true';
begin
  if p_status is not null then
    v_filter := v_filter || ' and d.status = $1';
  end if;
  if p_older_than is not null then
    v_filter := v_filter || ' and d.last_ts < now() - $2';
    v_found := v_found || ' and ls.last_ts < now() - $2';
  end if;
  if p_cohort is not null then
    v_filter := v_filter || ' and d.cohort = $5';
  end if;
  if p_alias is not null then
    v_filter := v_filter || ' and d.alias = $6';
  end if;

  if p_alias is not null then
    v_found := null;  -- at most one device, which its alias finds sooner than any mark
  elsif p_status = 'clock_skewed' then
    v_found := v_found || ' and ls.status = ''clock_skewed''';
  elsif p_status = 'offline' and fleet.marks_hold() then
    v_found := v_found || ' and ls.is_silent';
  elsif p_older_than is not null and fleet.marks_hold(p_older_than) then
    -- Devices asked for so few heartbeats may be silent for so long without the mark.
    if (select max(d.heartbeat_interval) from fleet.devices d) > p_older_than / 2 then
      v_found := v_found || ' and not ls.is_silent'
        ' and ls.device_id in (select d.device_id from fleet.devices d where d.heartbeat_interval > $2 / 2)'
        ' union all ' || v_found;
    end if;
    v_found := v_found || ' and ls.is_silent';
  else
    v_found := null;
  end if;

  if v_found is null then
    return query execute 'select d.* from fleet.device_status d' || v_filter || ' and d.device_id > $3 order by d.device_id limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;
  -- OFFSET 0 keeps the planner from joining the whole fleet to a few: it cannot guess how many have a status.
  return query execute 'select d.* from (' || v_found || ') found cross join lateral ('
    'select s.* from fleet.device_status s where s.device_id = found.device_id offset 0) d'
    || v_filter || ' order by found.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer, text, text) is
  'A page of fleet.device_status in device_id order, after a device_id: by status, by time since the last heartbeat, by cohort and by alias. Example: select alias from fleet.list_devices(''offline'', ''12 minutes'');';
--! EndIncluded functions/list_devices.sql
--! Included functions/list_devices_legacy.sql
create or replace function fleet.list_devices_legacy(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status_legacy
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select d.*
  from fleet.device_status_legacy d
  where d.device_id > p_after
    and (p_status is null or d.status = p_status)
    and (p_older_than is null or d.last_ts < now() - p_older_than)
    and (p_cohort is null or d.cohort = p_cohort)
    and (p_alias is null or d.alias = p_alias)
  order by d.device_id
  limit p_limit;
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer, text, text) is
  'fleet.list_devices() over fleet.device_status_legacy. Example: select alias from fleet.list_devices_legacy(''offline'', ''12 minutes'');';
--! EndIncluded functions/list_devices_legacy.sql
--! Included functions/create_device.sql
create or replace function fleet.create_device(
  p_alias text,
  p_cohort text default 'default',
  out device_id bigint,
  out token text
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.enroll_device(''lobby-tablet-7'');';
  end if;
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Leave it out for the cohort named default.';
  end if;
  token := fleet.make_token('nxd_');
  insert into fleet.devices as d (alias, cohort, token_hash)
  values (p_alias, p_cohort, fleet.hash_token(token))
  on conflict (alias) do nothing
  returning d.device_id into create_device.device_id;
  if not found then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias;
    raise exception using
      errcode = 'FL409',
      message = format('a device with alias %s is enrolled already', p_alias),
      hint = format(
        'If this is device %s, reset or reinstalled, give it a new token: select fleet.renew_token(%s); or POST /admin/devices/%s/token. '
        'If it is another device, choose another alias: they are unique, also those of revoked devices.',
        v_other, v_other, v_other
      );
  end if;
  insert into fleet.device_last_status (device_id, is_silent)
  values (create_device.device_id, false);
end
$$;

comment on function fleet.create_device(text, text) is
  'Enrolls a device; returns its id and its token, which is shown only now. Example: select * from fleet.create_device(''lobby-tablet-7'', ''lobby'');';
--! EndIncluded functions/create_device.sql
--! Included functions/rename_device.sql
create or replace function fleet.rename_device(p_device_id bigint, p_alias text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old text;
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
  end if;
  select d.alias into v_old from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_old = p_alias then
    return false;
  end if;
  begin
    update fleet.devices set alias = p_alias where device_id = p_device_id;
  exception when unique_violation then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias;
    raise exception using
      errcode = 'FL409',
      message = format('device %s has the alias %s already; device %s is still called %s', v_other, p_alias, p_device_id, v_old),
      hint = format(
        'Aliases are unique, also those of revoked devices: choose another, or rename that one first: select fleet.rename_device(%s, %L);',
        v_other, left(p_alias, 190) || ' (old)'
      );
  end;
  perform fleet.record_event('device.renamed', p_detail => format('device %s: %s, before %s; by %s', p_device_id, p_alias, v_old, session_user));
  return true;
end
$$;

comment on function fleet.rename_device(bigint, text) is
  'Gives a device, also a revoked one, another alias; its token and heartbeats stay. False when that is its alias already. Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
--! EndIncluded functions/rename_device.sql
--! Included functions/move_device.sql
create or replace function fleet.move_device(p_device_id bigint, p_cohort text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alias text;
  v_old text;
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Example: select fleet.move_device(42, ''lobby'');';
  end if;
  select d.alias, d.cohort into v_alias, v_old from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_old = p_cohort then
    return false;
  end if;
  update fleet.devices set cohort = p_cohort where device_id = p_device_id;
  perform fleet.record_event(
    'device.moved',
    p_detail => format('device %s (%s): cohort %s, before %s; by %s', p_device_id, v_alias, p_cohort, v_old, session_user)
  );
  return true;
end
$$;

comment on function fleet.move_device(bigint, text) is
  'Moves a device to another cohort; it learns that cohort''s pace with its next answer. False when it is there already. Example: select fleet.move_device(42, ''lobby'');';
--! EndIncluded functions/move_device.sql
--! Included functions/renew_token.sql
create or replace function fleet.renew_token(p_device_id bigint) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_token('nxd_');
  v_alias text;
  v_revoked_at timestamptz;
begin
  select d.alias, d.revoked_at into v_alias, v_revoked_at from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  update fleet.devices
  set token_hash = fleet.hash_token(v_token), revoked_at = null
  where device_id = p_device_id;
  perform fleet.record_event(
    'device.token_renewed',
    p_detail => format('device %s (%s) got a new token%s; by %s', p_device_id, v_alias,
      case when v_revoked_at is not null then format(', the old one had been revoked at %s', date_trunc('second', v_revoked_at)) end, session_user)
  );
  perform pg_notify('fleet_tokens', 'device:' || p_device_id);
  return v_token;
end
$$;

comment on function fleet.renew_token(bigint) is
  'Gives a device a new token, shown only now, in place of one that was lost, revoked, or never known; the old one stops within a second. Example: select fleet.renew_token(42);';
--! EndIncluded functions/renew_token.sql
--! Included functions/revoke_device.sql
create or replace function fleet.revoke_device(p_device_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alias text;
  v_revoked_at timestamptz;
begin
  select d.alias, d.revoked_at into v_alias, v_revoked_at from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_revoked_at is not null then
    return false;
  end if;
  update fleet.devices
  set revoked_at = now()
  where device_id = p_device_id;
  perform fleet.record_event('device.revoked', p_detail => format('device %s (%s); by %s', p_device_id, v_alias, session_user));
  perform pg_notify('fleet_tokens', 'device:' || p_device_id);
  return true;
end
$$;

comment on function fleet.revoke_device(bigint) is
  'Revokes a device''s token: servers refuse it within a second. False when it was revoked before. Its heartbeats stay. Example: select fleet.revoke_device(42);';
--! EndIncluded functions/revoke_device.sql
--! Included functions/rows_hash.sql
-- Measured over 1,000,000 rows: a fraction of what fleet.content_checksum() takes, whose text has to be the same in DuckDB. This one is
-- compared only with itself, in one cluster: another version of Postgres may hash differently.
create or replace function fleet.rows_hash(p_table regclass) returns numeric
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hash numeric;
begin
  execute format('select coalesce(sum(hash_record_extended(t, 0)), 0) from only %s t', p_table) into v_hash;
  return v_hash;
end
$$;

comment on function fleet.rows_hash(regclass) is
  'A sum of 64-bit hashes of the rows of a retired table. It tells quickly, before the drop, that nothing has changed since fleet.count_retired().';
--! EndIncluded functions/rows_hash.sql
--! Included procedures/run_planned_steps.sql
-- A procedure that commits can have neither SET nor SECURITY DEFINER, so the functions that it calls have them.
create or replace procedure fleet.run_planned_steps(p_run_id bigint)
language plpgsql
as $$
declare
  v_outcome text;
  v_attempt integer := 1;
begin
  loop
    v_outcome := fleet.run_next_step(p_run_id, v_attempt);
    commit;
    exit when v_outcome = 'over';
    if v_outcome = 'busy' then
      -- Usually a long query over the whole parent holds the lock. Wait a moment outside of a transaction and try again.
      perform pg_catalog.pg_sleep(0.2 * v_attempt);
      commit;
      v_attempt := v_attempt + 1;
    else
      v_attempt := 1;
    end if;
  end loop;
end
$$;

comment on procedure fleet.run_planned_steps(bigint) is
  'Runs the steps of a maintenance run, each in its own transaction. A step is retried while locks are busy and recorded in fleet.events, and its failure does not stop the others.';
--! EndIncluded procedures/run_planned_steps.sql
--! Included views/partition_health.sql
create or replace view fleet.partition_health as
select p.partition_name, p.range_start, p.range_end, p.state, p.step, p.row_count,
  coalesce(pg_total_relation_size(case when p.state <> 'dropped' then fleet.table_of(p) end), 0) as bytes_size,
  p.attempts, p.next_attempt_at, p.last_error, p.held_reason, p.lease_owner, p.lease_until, p.detached_at, p.proven_at,
  p.dropped_at, p.restored_at, p.archive_url
from fleet.hb_partitions p
order by p.range_start desc;

comment on view fleet.partition_health is
  'Each partition that ever was, newest first: where it is in its life, and what is wrong with it. Example: select * from fleet.partition_health where state = ''archive_failed'';';
--! EndIncluded views/partition_health.sql
--! Included views/storage_growth.sql
create or replace view fleet.storage_growth as
select (p.range_start at time zone 'UTC')::date as day, p.partition_name, p.state, p.row_count,
  coalesce(pg_total_relation_size(case when p.state <> 'dropped' then fleet.table_of(p) end), 0) as bytes_online,
  coalesce(p.archive_bytes, 0) as bytes_archived
from fleet.hb_partitions p
where p.range_start <= now()
order by p.range_start desc;

comment on view fleet.storage_growth is
  'Rows and bytes of each partition, by its first UTC day, online and in the archive, newest first. Example: select sum(bytes_online) from fleet.storage_growth;';
--! EndIncluded views/storage_growth.sql
--! Included views/archives.sql
create or replace view fleet.archives as
select p.partition_name, p.range_start, p.range_end, p.state, p.row_count, p.min_ts, p.max_ts, p.archive_bytes,
  p.checksum_sha256, p.content_checksum, p.archive_url, p.proven_at,
  p.columns, p.checksum_version, p.manifest_format, p.confirmed_at, p.confirmed_by
from fleet.hb_partitions p
where p.proven_at is not null and p.archive_url is not null
order by p.range_start;

comment on view fleet.archives is
  'Every proven archive: date range, rows, checksums, location, columns, and when it was proven and confirmed. Example: select * from fleet.archives where range_start >= now() - interval ''1 year'';';
--! EndIncluded views/archives.sql
--! Included views/data_coverage.sql
create or replace view fleet.data_coverage as
select d.day,
  case
    when p.in_database and p.in_archive then 'both'
    when p.in_database then 'online'
    when p.in_archive then 'archived'
    else 'missing'
  end as "where",
  p.row_count
from (
  -- Computed without a time zone: in the session's zone a day may begin at another hour, and two days a year are longer or shorter.
  select generate_series(
    (select min(range_start) from fleet.hb_partitions) at time zone 'UTC', date_trunc('day', now() at time zone 'UTC'), interval '1 day'
  )::date as day
) d
left join lateral (
  select bool_or(h.relid is not null) as in_database,
    bool_or(h.proven_at is not null and h.archive_url is not null) as in_archive,
    sum(h.row_count) as row_count
  from fleet.hb_partitions h
  where h.range_start <= d.day::timestamp at time zone 'UTC' and h.range_end > d.day::timestamp at time zone 'UTC'
) p on true
order by d.day desc;

comment on view fleet.data_coverage is
  'Where the heartbeats of each UTC day are: online (in the database), archived, both or missing. row_count is that of the day''s partition. Example: select * from fleet.data_coverage where "where" = ''missing'';';
--! EndIncluded views/data_coverage.sql
--! Included views/job_health.sql
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
--! EndIncluded views/job_health.sql
--! Included triggers/hb_partitions_seal.sql
create or replace trigger hb_partitions_seal
  before insert or update of relid, relid_seal on fleet.hb_partitions
  for each row execute function fleet.seal_relid();

comment on trigger hb_partitions_seal on fleet.hb_partitions is
  'Sets relid_seal, which marks relid as recorded in this database.';
--! EndIncluded triggers/hb_partitions_seal.sql
--! Included triggers/adoptions_seal.sql
create or replace trigger adoptions_seal
  before insert on fleet.adoptions
  for each row execute function fleet.seal_source();

comment on trigger adoptions_seal on fleet.adoptions is 'Sets relid_seal, which marks relid as recorded in this database.';
--! EndIncluded triggers/adoptions_seal.sql
--! Included triggers/hb_partitions.sql
create or replace trigger hb_partitions_protect
  after insert or update on fleet.hb_partitions
  for each row execute function fleet_guard.note_partition();

comment on trigger hb_partitions_protect on fleet.hb_partitions is
  'Tells the guard against drops which partitions are proven.';
--! EndIncluded triggers/hb_partitions.sql
--! Included grants.sql
-- Who may do what. Everything is revoked first, so that this file is the whole truth.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke create on schema fleet_detached from fleet_archiver;
grant usage on schema fleet_detached to fleet_archiver, fleet_reader, fleet_dba;

-- Heartbeats are never changed, not even by the owner: rows leave with their partition, once it is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.token_changes(xid8),
  fleet.recent_tokens(integer),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.record_slo(text, json),
  fleet.end_session(bytea, timestamptz),
  fleet.is_session_ended(bytea),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer, text, text),
  fleet.list_devices_legacy(text, interval, bigint, integer, text, text),
  fleet.marks_hold(interval),  -- what the view devices_offline calls
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.silence_at(timestamptz),  -- what the view fleet_silence calls
  fleet.postgres_started_at(),
  fleet.job_history()  -- what the view job_health calls
to fleet_server, fleet_reader, fleet_dba;
-- Called by the views partition_health and storage_growth.
grant execute on function fleet.table_of(fleet.hb_partitions) to fleet_server, fleet_archiver, fleet_reader, fleet_dba;

grant execute on function
  fleet.create_device(text, text),
  fleet.revoke_device(bigint),
  fleet.rename_device(bigint, text),
  fleet.move_device(bigint, text),
  fleet.renew_token(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(timestamptz),
  -- The procedures call these with the rights of their caller. The steps run with the owner's rights; see fleet.begin_run().
  fleet.begin_run(text, interval, timestamptz),
  fleet.run_next_step(bigint, integer),
  fleet.end_run(bigint)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_planned_steps(bigint)
to fleet_server, fleet_dba;
grant execute on procedure fleet.maintain(bigint, timestamptz) to fleet_dba;

grant execute on function
  fleet.enroll_device(text, text),
  fleet.is_night_missed(timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.rollup_plan(timestamptz),
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
  fleet.set_cohort_interval(text, interval),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.accept_archive(text, text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.roll_up(date, timestamptz, boolean),
  fleet.availability_of_day(date, timestamptz, bigint[]),
  fleet.schedule_jobs(),
  fleet.wake_archiver(text),
  fleet.adoption_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_adoption(regclass),
  fleet.forget_adoption(text),
  fleet.refused_rows(regclass, integer),
  -- The procedures of adoptions call these with the rights of their caller.
  fleet.begin_adoption(regclass, jsonb, text, timestamptz, boolean),
  fleet.begin_verification(regclass),
  fleet.begin_abandoning(regclass),
  fleet.adoption_step(text, integer),
  fleet.end_adoption(text, text),
  fleet.check_partitions(timestamptz),
  fleet.check_ingest(timestamptz),
  fleet.check_silence(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_columns(),
  fleet.check_sessions(timestamptz),
  fleet.check_storage(timestamptz),
  fleet.check_adoption(timestamptz),
  fleet.check_settings(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_dba;

grant execute on procedure
  fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_adoption(regclass, text),
  fleet.abandon_adoption(regclass, text),
  fleet.run_adoption(text, integer, interval, text)
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.content_checksum(regclass, jsonb, integer),
  fleet.checksum_expression(regclass, jsonb, integer),
  fleet.archive_form(text),
  fleet.unarchivable_columns(regclass),
  fleet.map_columns(jsonb, timestamptz),
  fleet.note_columns(),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.take_index_lock(),
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.count_retired(text, text, bigint, jsonb, integer),
  fleet.record_export(text, text),
  fleet.record_upload(text, text, text, text, bigint, integer, integer),
  fleet.record_columns(text, text, jsonb, integer, integer),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.fail_restore(text, text, text),
  fleet.adopt_archive(
    text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer, integer
  )
to fleet_archiver;

grant select on
  fleet.device_status, fleet.device_status_legacy, fleet.devices_offline, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;
grant select on fleet.unity_down to fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.storage_history, fleet.job_health,
  fleet.fleet_silence, fleet.fleet_trend, fleet.missed_beats, fleet.silence_samples, fleet.adoption_progress, fleet.device_availability, fleet.slo
to fleet_reader, fleet_dba;
grant execute on function fleet.device_availability(date, date, bigint, timestamptz) to fleet_reader, fleet_dba;
-- For the ops page.
grant select on
  fleet.partition_health, fleet.archives, fleet.job_health, fleet.fleet_silence, fleet.fleet_trend, fleet.slo
to fleet_server;
-- What the view adoption_progress calls.
grant execute on function fleet.lock_holders(text) to fleet_reader, fleet_dba;
grant select on fleet.archives to fleet_archiver, fleet_verifier;
grant execute on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz) to fleet_verifier;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_items to fleet_archiver, fleet_dba;
grant select on fleet.restore_requests to fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on
  fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual,
  fleet.device_availability_daily, fleet.rolled_up_days, fleet.late_arrivals, fleet.storage_daily
to fleet_dba;
grant select on fleet.column_changes to fleet_reader, fleet_dba;
grant select on fleet.adoptions, fleet.adoption_days, fleet.adoption_refusals to fleet_dba;
grant select, insert, update, delete on fleet.adoption_devices to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep, rollups_keep, silence_window, silence_share, silence_ratio,
  silence_min_devices, ingest_gap, archive_stores, proofs_needed
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql

-- A publication of all tables refuses DELETE on a table without a replica identity. A key would cost ingest an index.
alter table fleet.late_arrivals replica identity full;

-- Seals the oids of a running store. A table that was renamed by hand is attached with the bounds of its partition, or lies in
-- fleet_detached, has a column ts and no other partition's name. Oids that fit neither case came with a restored dump.
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

-- Notes today's columns; changes are recorded from here on.
select fleet.note_columns();

drop function if exists fleet.protect_partition();
drop function if exists fleet.hand_to_archiver(text);
-- Retired tables belonged to the archiver.
do $$
declare
  v_name text;
begin
  for v_name in
    select c.relname
    from pg_catalog.pg_class c
    where c.relnamespace = 'fleet_detached'::regnamespace and c.relkind = 'r'
      and exists (select from fleet.hb_partitions p where p.partition_name = c.relname)
  loop
    execute format('alter table fleet_detached.%I owner to fleet_owner', v_name);
    perform fleet.make_read_only(v_name);
  end loop;
end
$$;
