create or replace function fleet.unarchivable_columns(p_table regclass) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(
    concat(a.attname, ' ', format_type(a.atttypid, a.atttypmod), case when a.attgenerated <> '' then ' (generated)' end),
    ', ' order by a.attnum
  )
  from pg_attribute a
  where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    -- COPY neither reads nor writes a generated column.
    and (a.attgenerated <> '' or fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is null);
$$;

comment on function fleet.unarchivable_columns(regclass) is
  'Lists the columns of a table, with their types, for which there is no archive form. Null if there are none. '
  'Example: select fleet.unarchivable_columns(''fleet.device_heartbeats'');';
