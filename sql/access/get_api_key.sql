create or replace function fleet.get_api_key(p_name text) returns fleet.api_credentials
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key fleet.api_credentials;
begin
  select * into v_key from fleet.api_credentials c where c.key_name = p_name for no key update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no API key named %s', coalesce(p_name, 'null')),
      hint = 'select name from fleet.api_keys;';
  end if;
  return v_key;
end
$$;

comment on function fleet.get_api_key(text) is 'The API key of this name, locked until the end of the transaction.';
