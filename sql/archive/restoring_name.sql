-- Not the name of the partition: a day without rows may be created again while it is restored, and is then retired under that
-- name.
create or replace function fleet.restoring_name(p_partition text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select left('restoring_' || p_partition, 63);
$$;

comment on function fleet.restoring_name(text) is
  'The name of the table in schema fleet that a restore is copied into, until it is proven and becomes the partition.';
