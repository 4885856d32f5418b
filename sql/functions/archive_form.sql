-- The one list of types that can be archived. archiver/parquet.ts has the same for DuckDB, sql/shape-guard.sql the names alone.
-- The type comes from manifests too and becomes part of a statement, so it is compared as a whole.
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
      -- By its bits: the texts of Postgres and DuckDB differ. Of NaN there are many.
      $f$case when %1$I = 'NaN' then 'NaN' else ('x' || encode(float8send(%1$I), 'hex'))::bit(64)::text end$f$
  end;
$$;

comment on function fleet.archive_form(text) is
  'The canonical text of a value of this type that is not null, as a format() string for the column''s name; null for a type that cannot be archived. Example: select fleet.archive_form(''numeric(10,2)'');';
