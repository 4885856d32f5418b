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

  -- Goes through temporary names, because two columns may have swapped theirs.
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
        -- Rows that are older than the column have no value for it, so the default is used only if the column must not be null.
        execute format(
          'alter table %s add column %I %s %s %s', p_table, v_column.name, v_column.type, v_column.collation,
          case when v_column.is_not_null then concat_ws(' ', 'default ' || v_column.default_value, 'not null') end
        );
      elsif v_column.is_other then
        execute format(
          'select count(*) from %s where %I is distinct from %2$I::%s::%s',
          p_table, v_column.name, v_column.type, v_column.archived_type
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
    exception
      when data_exception or integrity_constraint_violation or syntax_error_or_access_rule_violation or raise_exception then
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
  'Changes a proven restored table from the columns of its archive to those of fleet.device_heartbeats today. Returns the '
  'columns that were left out, or null. Raises an error that names the column if a value would change.';
