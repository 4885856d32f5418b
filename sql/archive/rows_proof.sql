create or replace function fleet.rows_proof(p_rows_sha256 text, p_content_checksum numeric) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce('rows_sha256 ' || p_rows_sha256, 'content checksum ' || p_content_checksum, 'no checksum of the rows');
$$;

comment on function fleet.rows_proof(text, numeric) is
  'The checksum of the rows of an archive, as messages name it: manifest formats 1 and 2 have a content checksum, later ones '
  'rows_sha256.';
