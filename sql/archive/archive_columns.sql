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
      hint = 'Use a type for which fleet.archive_form(type) returns a form, or add a form for this type to '
        'sql/archive/archive_form.sql, sql/setup/shape-guard.sql and archiver/archive/parquet.ts.';
  end if;
  return query
    select a.attname::text, format_type(a.atttypid, a.atttypmod), (row_number() over (order by a.attnum))::integer
    from pg_attribute a
    where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    order by a.attnum;
end
$$;

comment on function fleet.archive_columns(regclass) is
  'Lists the columns of a partition as they are archived, in order. Raises an error if a column has a type without an archive '
  'form; see fleet.archive_form().';
