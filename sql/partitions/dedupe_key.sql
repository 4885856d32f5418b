create or replace function fleet.dedupe_key() returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(
    pg_get_indexdef('fleet.device_heartbeats_template_dedupe_key'::regclass), '^.* USING btree ', ''
  );
$$;

comment on function fleet.dedupe_key() is
  'The columns and expressions of the dedupe key, as the index of the template table has them.';
