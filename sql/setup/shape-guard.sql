-- Refuses a column whose type the archive cannot store, as soon as it is added or its type is changed and not only when its first
-- day is archived. Run at setup, after guard.sql, by the administrator.
--
-- It runs with the rights of the role that changes the table, and reads only the catalog: if a superuser changes the table, it
-- must not call a function that fleet_owner can replace. So it has its own list of types, which a test compares with
-- fleet.archive_form().
-- Names resolve in pg_catalog, no matter who runs this, so that no object of an ordinary role is used instead.
set search_path = pg_catalog, pg_temp;

create or replace function fleet_guard.refuse_unarchivable_column() returns event_trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_column record;
begin
  for v_column in
    select c.object_identity as table_name, a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
      a.attgenerated <> '' as is_generated
    from pg_event_trigger_ddl_commands() c
    join pg_attribute a on a.attrelid = c.objid and a.attnum > 0 and not a.attisdropped
    where c.classid = 'pg_class'::regclass
      and c.objid in (to_regclass('fleet.device_heartbeats'), to_regclass('fleet.device_heartbeats_template'))
      -- Only columns that this transaction wrote: an older column must not prevent changes to the others.
      and age(a.xmin) <= 0
      and (
        a.attgenerated <> ''
        or format_type(a.atttypid, a.atttypmod) !~ (
          '^(smallint|integer|bigint|boolean|uuid|numeric(\(\d+,-?\d+\))?|text|jsonb|text\[\]|inet|'
          'timestamp(\(\d\))? with(out)? time zone|date|double precision)$'
        )
      )
    limit 1
  loop
    raise exception using
      errcode = 'FL422',
      message = format(
        'column %s of %s is refused: the archive has no form for its type %s%s', v_column.name, v_column.table_name,
        v_column.type, case when v_column.is_generated then ' (generated)' else '' end
      ),
      detail = 'Days with such a column could not be archived and would never be dropped.',
      hint = 'Types with a form: smallint, integer, bigint, boolean, numeric, double precision, text, text[], jsonb, inet, uuid, '
        'date, timestamp and timestamptz. To add one, edit sql/archive/archive_form.sql, sql/setup/shape-guard.sql and '
        'archiver/archive/parquet.ts.';
  end loop;

  -- Changes by the owner are recorded immediately. Changes by other roles are recorded by the next fleet.maintain().
  if current_user = 'fleet_owner' and to_regprocedure('fleet.note_columns()') is not null and exists (
    select from pg_event_trigger_ddl_commands() c
    where c.classid = 'pg_class'::regclass and c.objid = to_regclass('fleet.device_heartbeats')
  ) then
    perform fleet.note_columns();
  end if;
end
$$;
comment on function fleet_guard.refuse_unarchivable_column() is
  'Event trigger on ddl_command_end: refuses a statement that gives fleet.device_heartbeats a column that cannot be archived.';

revoke all on function fleet_guard.refuse_unarchivable_column() from public;

do $$
begin
  if exists (select from pg_catalog.pg_event_trigger where evtname = 'fleet_guard_columns') then
    return;
  end if;
  if not (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
    raise warning using
      message = format('%s is not a superuser: the event trigger fleet_guard_columns was not created', current_user),
      detail = 'A column that cannot be archived will not be refused when it is added; fleet.check() will report it.',
      hint = 'As superuser, run sql/setup/shape-guard.sql once more.';
    return;
  end if;
  create event trigger fleet_guard_columns on ddl_command_end when tag in ('ALTER TABLE')
    execute function fleet_guard.refuse_unarchivable_column();
  alter event trigger fleet_guard_columns enable always;
  comment on event trigger fleet_guard_columns is
    'Refuses a column of fleet.device_heartbeats that cannot be archived.';
end
$$;
