create or replace function fleet.find_api_key(p_hash bytea)
returns table (key_id bigint, name text, scopes text[], cohorts text[])
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.key_id, c.key_name, c.scopes, c.cohorts
  from fleet.api_credentials c
  where (c.token_hash = p_hash or c.previous_hash = p_hash and c.previous_until > now())
    and c.revoked_at is null
    and (c.expires_at is null or c.expires_at > now());
$$;

comment on function fleet.find_api_key(bytea) is
  'The API key with this SHA-256, if it is valid now. Example: select * from fleet.find_api_key(fleet.hash_token(''nxk_…''));';
