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

  -- Version 2 has more types than version 1. The types of version 1 have the same text in both.
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
      hint = 'The known forms are in sql/archive/archive_form.sql and archiver/archive/parquet.ts.';
  end if;
  select string_agg(c.value ->> 'name', ', ' order by c.ordinality) into v_unknown
  from jsonb_array_elements(v_columns) with ordinality c
  where not exists (
    select from pg_attribute a
    where a.attrelid = p_table and a.attname = c.value ->> 'name' and a.attnum > 0 and not a.attisdropped
  );
  if v_unknown is not null then
    raise exception using
      errcode = 'FL010',
      message = format('%s lacks columns that its checksum covers: %s', p_table, v_unknown),
      hint = 'The table was changed after it was retired. Hold its partition while you look: fleet.hold_partition().';
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
  'Builds the SQL expression for the checksum of one row, from the canonical texts of these columns (default: all columns of '
  'the table). See fleet.content_checksum().';
