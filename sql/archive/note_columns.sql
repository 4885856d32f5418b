-- Called wherever the columns matter, so it finds renames without an event trigger: a column keeps its attnum when it is renamed.
-- A restored dump gives the columns new numbers, so after a restore only the names decide.
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
    return 0;  -- the primary records the changes
  end if;
  -- A managed Postgres may hide the system identifier. Then the oid of the table has to be enough.
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
    -- Another session may be recording the same changes, so look again once it has finished.
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
    select v_at, c.change, coalesce(p.old_name, p.new_name), case c.change when 'renamed' then p.new_name end,
      p.old_type, p.new_type
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
  perform fleet.grant_heartbeat_columns();

  perform fleet.create_forward_function(i)
  from fleet.imports i
  where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;

  perform fleet.record_event(
    'columns.change',
    p_detail => string_agg(
      concat_ws(
        ' ', c.change, c.name,
        case c.change
          when 'renamed' then 'to ' || c.new_name
          when 'retyped' then 'to ' || c.new_type
          else coalesce(c.new_type, c.type)
        end
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
  'Compares the columns of fleet.device_heartbeats with those recorded last, and records in fleet.column_changes which were '
  'added, dropped, renamed or retyped. Returns how many. Called by fleet.maintain() and before a partition is retired or '
  'restored. '
  'Example: select fleet.note_columns(); select * from fleet.column_changes;';
