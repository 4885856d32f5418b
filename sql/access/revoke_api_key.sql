create or replace function fleet.revoke_api_key(p_name text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key fleet.api_credentials := fleet.get_api_key(p_name);
begin
  if v_key.revoked_at is not null then
    return false;
  end if;
  update fleet.api_credentials c
  set revoked_at = now(), previous_hash = null, previous_until = null
  where c.key_id = v_key.key_id;
  perform fleet.audit('api_key.revoked', 'api_key:' || p_name);
  return true;
end
$$;

comment on function fleet.revoke_api_key(text) is
  'Revokes an API key, and with it the sessions of the ops page that were opened with it: from the commit on, every server '
  'refuses it. Returns false if it was already revoked. Example: select fleet.revoke_api_key(''partner'');';
