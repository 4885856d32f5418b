create or replace function fleet.hash_token(p_token text) returns bytea
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select sha256(convert_to(p_token, 'UTF8'));
$$;

comment on function fleet.hash_token(text) is 'What is stored of a token: its SHA-256.';
