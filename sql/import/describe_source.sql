-- Everything that can be wrong with a table is reported here, before anything is changed.
create or replace function fleet.describe_source(
  p_source regclass,
  p_columns jsonb,
  p_unknown_devices text,
  p_oldest timestamptz,
  p_forward boolean
) returns fleet.imports
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  a fleet.imports;
  v_class pg_class;
  v_schema name;
  v_fault text;
  v_hint text;
  v_target record;
  v_column text;
  v_type text;
  v_id_type text;
begin
  if fleet.is_distributed() then
    raise exception using
      errcode = 'FL002',
      message = 'this store is distributed, and only a plain store can import a table',
      hint = 'Import it into a plain store, and distribute that: docs/scale-out.md.';
  end if;
  select * into v_class from pg_class c where c.oid = p_source;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no table %s', coalesce(p_source::text, 'null')),
      hint = 'Give the name with its schema: call fleet.import_table(''public.device_heartbeats'');';
  end if;
  v_schema := (select n.nspname from pg_namespace n where n.oid = v_class.relnamespace);
  a.source := format('%I.%I', v_schema, v_class.relname);
  a.relid := v_class.oid;
  a.store_ip := (select s.store_ip from fleet.settings s);
  a.unknown_devices := coalesce(p_unknown_devices, 'refuse');
  a.forwards := coalesce(p_forward, true);
  a.is_oldest_given := p_oldest is not null;
  a.oldest := coalesce(p_oldest, now() - interval '3650 days');

  v_fault := case
    when v_schema in ('fleet', 'fleet_detached', 'fleet_guard', 'partman', 'cron', 'pg_catalog', 'information_schema') then
      'it belongs to the store or to Postgres itself'
    when v_class.relkind = 'p' then 'it is partitioned'
    when v_class.relkind = 'f' then 'it is a foreign table'
    when v_class.relkind in ('v', 'm') then 'it is a view'
    when v_class.relkind <> 'r' then 'it is not a table'
    when v_class.relpersistence = 't' then 'it is a temporary table, which other sessions cannot see'
    when v_class.relispartition then 'it is a partition of another table'
    when exists (select from pg_inherits i where p_source in (i.inhrelid, i.inhparent)) then
      'it inherits from a table, or a table inherits from it'
    when v_class.relrowsecurity then 'its row-level security may hide rows'
  end;
  if v_fault is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be imported: %s', a.source, v_fault),
      hint = case
        when v_fault = 'its row-level security may hide rows' then format('As its owner: alter table %s disable row level security;', a.source)
        else 'Only a plain table can be imported. Copy the rows into one: create table public.device_heartbeats as select …;'
      end;
  end if;

  select string_agg(r.grant_, '; '), string_agg(r.right_, ', ')
  into v_hint, v_fault
  from (
    select format('grant usage on schema %I to %I', v_schema, current_user) as grant_,
      'USAGE on its schema' as right_
    where not has_schema_privilege(v_class.relnamespace, 'usage')
    union all
    select format('grant select, trigger on %s to %I', a.source, current_user), 'SELECT and TRIGGER on it'
    where not (has_table_privilege(p_source, 'select') and has_table_privilege(p_source, 'trigger'))
  ) r;
  if v_fault is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be imported: role %s lacks %s', a.source, current_user, v_fault),
      hint = format('As its owner: %s;', v_hint);
  end if;

  select string_agg(k.key, ', ') into v_fault
  from jsonb_object_keys(case jsonb_typeof(p_columns) when 'object' then p_columns else '{}' end) as k (key)
  where k.key not in (select c.name from fleet.archive_columns('fleet.device_heartbeats') c);
  if v_fault is not null or jsonb_typeof(p_columns) <> 'object' then
    raise exception using
      errcode = 'FL422',
      message = case
        when v_fault is null then format('the columns of %s must be given as a JSON object, not as %s', a.source, p_columns)
        else format('fleet.device_heartbeats has no column %s that could be filled from %s', v_fault, a.source)
      end,
      hint = 'For a column of fleet.device_heartbeats, give the column of your table, or null for none: '
        'p_columns => ''{"battery_pct": "battery", "ip": null}''.';
  end if;

  a.columns := '{}';
  for v_target in select c.name, c.type from fleet.archive_columns('fleet.device_heartbeats') c order by c.position loop
    v_column := case when p_columns ? v_target.name then p_columns ->> v_target.name else v_target.name end;
    select format_type(t.atttypid, t.atttypmod) into v_type
    from pg_attribute t
    where t.attrelid = p_source and t.attname = v_column and t.attnum > 0 and not t.attisdropped;
    if not found and (v_target.name in ('ts', 'device_id') or p_columns ->> v_target.name is not null) then
      raise exception using
        errcode = 'FL422',
        message = case
          when v_column is null then format('%s cannot be imported: p_columns gives it no column for %s', a.source, v_target.name)
          else format('%s cannot be imported: it has no column %s for %s', a.source, v_column, v_target.name)
        end,
        hint = format('Name the right one: p_columns => ''{"%s": "name"}''. Its columns: %s.', v_target.name, (
          select string_agg(t.attname, ', ' order by t.attnum)
          from pg_attribute t
          where t.attrelid = p_source and t.attnum > 0 and not t.attisdropped
        ));
    end if;
    a.columns := a.columns || jsonb_build_object(v_target.name, case when found then v_column end);
    if not found then
      continue;
    end if;
    if v_target.name = 'device_id' then
      v_id_type := v_type;
      continue;
    end if;
    begin
      -- PostgreSQL 18 takes the bytes of a bytea for a binary number. They are more likely the digits of one.
      if v_type = 'bytea' then
        raise cannot_coerce;
      end if;
      execute format('select null::%s::%s', v_type, v_target.type);
    exception when cannot_coerce then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s cannot be imported: column %s is %s, which cannot be converted to %s for %s', a.source, v_column, v_type,
          v_target.type, v_target.name
        ),
        hint = format(
          'Leave it out with p_columns => ''{"%s": null}'', or add a column of a suitable type to the table.', v_target.name
        );
    end;
  end loop;

  if a.unknown_devices not in ('refuse', 'enroll') or not isfinite(a.oldest) or a.oldest > now() then
    raise exception using
      errcode = 'FL422',
      message = case
        when a.unknown_devices not in ('refuse', 'enroll') then
          format('%s cannot be imported with p_unknown_devices => %s', a.source, a.unknown_devices)
        else format('%s cannot be imported with p_oldest => %s', a.source, a.oldest)
      end,
      hint = 'p_unknown_devices must be refuse or enroll; p_oldest must be a time in the past.';
  end if;
  a.match_by := case
    when exists (select from fleet.import_devices m where m.source = a.source) then 'map'
    when v_id_type in ('smallint', 'integer', 'bigint') then 'device_id'
    else 'alias'
  end;
  if pg_relation_size(p_source) = 0 then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be imported: it is empty', a.source),
      hint = 'There is nothing to move; point the devices at the new server.';
  end if;
  return a;
end
$$;

comment on function fleet.describe_source(regclass, jsonb, text, timestamptz, boolean) is
  'How a table would be imported: its columns, and how its devices are found. If the table cannot be imported, the error FL422 '
  'says why. Called by fleet.import_table() and fleet.import_plan().';
