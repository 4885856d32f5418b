create or replace function fleet.add_field(p_name text, p_type regtype, p_comment text) returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_tables constant regclass[] := array[
    'fleet.device_heartbeats', 'fleet.device_heartbeats_template', 'fleet.device_last_status'
  ];
  v_table regclass;
  v_type text;
begin
  -- In a new store the column is not a change: the columns of the store are recorded as they are then.
  delete from fleet.heartbeat_columns
  where not exists (select from fleet.device_heartbeats)
    and not exists (select from fleet.hb_partitions p where p.state <> 'active')
    and not exists (select from fleet.column_changes);
  foreach v_table in array c_tables loop
    v_type := (
      select format_type(a.atttypid, a.atttypmod)
      from pg_attribute a
      where a.attrelid = v_table and a.attname = p_name and not a.attisdropped
    );
    if v_type is null then
      execute format('alter table %s add column %I %s', v_table, p_name, format_type(p_type, null));
    elsif v_type <> format_type(p_type, null) then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s has a column %s of type %s already, and the field needs one of type %s', v_table, p_name, v_type,
          format_type(p_type, null)
        ),
        hint = format(
          'Rename it and migrate again. As fleet_owner: alter table %s rename column %I to %I;', v_table, p_name, 'own_' || p_name
        );
    end if;
  end loop;
  -- A partition that exists gets the column, but not its comment.
  foreach v_table in array c_tables || array(select a.relid::regclass from fleet.attached_partitions() a) loop
    execute format('comment on column %s.%I is %L', v_table, p_name, p_comment);
  end loop;
  perform fleet.note_columns();
end
$$;

comment on function fleet.add_field(text, regtype, text) is
  'Adds the column of a new field to the heartbeats, to the template of their partitions and to last status, with its comment. '
  'Called by the migration of the field; may be called again. See docs/add-a-field.md. '
  'Example: select fleet.add_field(''storage_free_mb'', ''integer'', ''Free storage in MB.'');';
