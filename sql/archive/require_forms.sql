create or replace function fleet.require_forms(p_partition text, p_columns jsonb) returns void
language plpgsql
stable
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
      message = format(
        'the archive of %s has %s', p_partition, coalesce('columns of unknown types: ' || v_unknown, 'no columns')
      ),
      hint = 'A newer version of this software may have written it. The known types are in sql/archive/archive_form.sql '
        'and archiver/archive/parquet.ts.';
  end if;
end
$$;

comment on function fleet.require_forms(text, jsonb) is
  'Raises an error if a column of an archive has a type without an archive form; see fleet.archive_form().';
