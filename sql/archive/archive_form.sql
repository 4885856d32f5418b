-- The list of types that can be archived, each with its form: the canonical text of its values. The same list for DuckDB is in
-- archiver/archive/parquet.ts, and the names of the types are in sql/setup/shape-guard.sql.
-- A type may come from a manifest and becomes part of a statement, so its whole text has to match.
create or replace function fleet.archive_form(p_type text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_type in ('smallint', 'integer', 'bigint', 'boolean', 'uuid') or p_type ~ '^numeric(\(\d+,-?\d+\))?$' then
      $f$%1$I::text$f$
    when p_type in ('text', 'jsonb', 'text[]') then
      $f$octet_length(%1$I::text) || ':' || %1$I::text$f$
    when p_type = 'inet' then
      $f$octet_length(abbrev(%1$I)) || ':' || abbrev(%1$I)$f$
    when p_type ~ '^timestamp(\(\d\))? with(out)? time zone$' then
      $f$case when isfinite(%1$I) then trunc(extract(epoch from %1$I) * 1000000)::text else %1$I::text end$f$
    when p_type = 'date' then
      $f$case when isfinite(%1$I) then (%1$I - date '1970-01-01')::text else %1$I::text end$f$
    when p_type = 'double precision' then
      -- The bits, because Postgres and DuckDB print different texts. NaN has many bit patterns, so it is written by name.
      $f$case when %1$I = 'NaN' then 'NaN' else ('x' || encode(float8send(%1$I), 'hex'))::bit(64)::text end$f$
  end;
$$;

comment on function fleet.archive_form(text) is
  'The SQL expression for the canonical text of a non-null value of this type, as a format() string that takes the column''s '
  'name. Null if the type cannot be archived. '
  'Example: select fleet.archive_form(''numeric(10,2)'');';
