create or replace function fleet.authenticate_key(p_hash bytea, p_address text)
returns table (name text, scopes text[], cohorts text[])
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key record;
begin
  select * into v_key from fleet.find_api_key(p_hash);
  if not found then
    return;
  end if;
  -- Once a minute, and never waiting for another request with the same key, or for its rotation.
  update fleet.api_credentials c
  set last_used_at = now(), last_address = p_address
  where c.key_id = (
    select u.key_id
    from fleet.api_credentials u
    where u.key_id = v_key.key_id
      and (u.last_used_at is null or u.last_used_at < now() - interval '1 minute')
    for no key update skip locked
  );
  return query select v_key.name, v_key.scopes, v_key.cohorts;
end
$$;

comment on function fleet.authenticate_key(bytea, text) is
  'Returns the name, the scopes and the cohorts of the API key with this SHA-256, and notes its use. Returns no row if the key is '
  'unknown, revoked or expired. Called by the server for each request with a key.';
