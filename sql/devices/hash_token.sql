create or replace function fleet.hash_token(p_token text) returns bytea
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(p_token, 'UTF8'));
$$;

comment on function fleet.hash_token(text) is 'The SHA-256 of a token: only this is stored.';
