create or replace function fleet.create_gateway_token(p_name text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_token('nxg_');
begin
  if p_name is null or btrim(p_name) = '' or length(p_name) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'name must have 1 to 200 characters',
      hint = 'Example: select fleet.create_gateway_token(''warehouse-3'');';
  end if;
  insert into fleet.gateways (gateway_name, token_hash)
  values (p_name, fleet.hash_token(v_token))
  on conflict (gateway_name) do nothing;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('a gateway named %s already exists', p_name),
      hint = 'Choose another name: names are unique, including those of revoked gateways.';
  end if;
  perform fleet.audit('gateway.created', 'gateway:' || p_name);
  return v_token;
end
$$;

comment on function fleet.create_gateway_token(text) is
  'Creates a token that may post heartbeats for any enrolled device. It is shown only now. '
  'Example: select fleet.create_gateway_token(''warehouse-3'');';
