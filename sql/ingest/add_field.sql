create or replace function fleet.add_field(p_name text, p_type regtype, p_comment text) returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  c_tables constant regclass[] := array[
    'fleet.device_heartbeats', 'fleet.device_heartbeats_template', 'fleet.device_last_status'
  ];
  v_table regclass;
  v_column record;
begin
  foreach v_table in array c_tables loop
    select format_type(a.atttypid, a.atttypmod) as type, a.attnotnull or a.attgenerated <> '' or a.attidentity <> '' as is_bound
    into v_column
    from pg_attribute a
    where a.attrelid = v_table and a.attname = p_name and not a.attisdropped;
    if v_column.type <> format_type(p_type, null) then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s has a column %s of type %s already, and the field needs one of type %s', v_table, p_name, v_column.type,
          format_type(p_type, null)
        ),
        hint = format(
          'Rename it and migrate again. As fleet_owner: alter table %s rename column %I to %I;', v_table, p_name, 'own_' || p_name
        );
    elsif v_column.is_bound then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s has a column %s already that is NOT NULL or generated, and a heartbeat need not have the field', v_table, p_name
        ),
        hint = format(
          'Drop NOT NULL, or rename the column, and migrate again. As fleet_owner: alter table %s alter column %I drop not null;',
          v_table, p_name
        );
    end if;
  end loop;

  -- A new store begins with the column, so it is not recorded as a change: fleet.note_columns() records all columns again below.
  delete from fleet.heartbeat_columns
  where not exists (select 1 from fleet.device_heartbeats)
    and not exists (select 1 from fleet.hb_partitions p where p.state <> 'active')
    and not exists (select 1 from fleet.column_changes);

  -- While this waits for a lock on one partition, heartbeats wait behind it. So it gives up soon, lets them through and tries
  -- again.
  for v_try in 1..20 loop
    begin
      foreach v_table in array c_tables loop
        execute format('alter table %s add column if not exists %I %s', v_table, p_name, format_type(p_type, null));
      end loop;
      -- A partition that exists gets the column, but not its comment.
      foreach v_table in array c_tables || array(select a.relid::regclass from fleet.attached_partitions() a) loop
        execute format('comment on column %s.%I is %L', v_table, p_name, p_comment);
      end loop;
      exit;
    exception when lock_not_available then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('fleet.device_heartbeats is in use: 20 attempts to add the column %s failed', p_name),
          hint = 'Nothing has changed. Wait until VACUUM, pg_dump or a long query has ended, and migrate again. Who it is: '
            'select pid, state, query from pg_stat_activity where query ilike ''%device_heartbeats%'';';
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;
  perform fleet.note_columns();
end
$$;

comment on function fleet.add_field(text, regtype, text) is
  'Adds the column of a new field to the heartbeats, to the template of their partitions and to last status, with its comment. '
  'Called by the migration of the field; may be called again. See docs/add-a-field.md. '
  'Example: select fleet.add_field(''storage_free_mb'', ''integer'', ''Free storage in MB.'');';
