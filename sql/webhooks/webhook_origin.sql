create or replace function fleet.webhook_origin(p_url text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(p_url, '^(https?://)(?:[^/?#]*@)?([^/?#@]*).*$', '\1\2');
$$;

comment on function fleet.webhook_origin(text) is 'The scheme, host and port of a URL. The rest of it may be secret. '
  'Example: select fleet.webhook_origin(''https://user:password@example.com:8443/hook'');';
