create or replace function fleet.revoke_gateway(p_name text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_gateway fleet.gateways;
begin
  select * into v_gateway from fleet.gateways where gateway_name = p_name for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no gateway %s', coalesce(p_name, 'null')),
      hint = 'Check the name. Gateways are created with fleet.create_gateway_token(name).';
  end if;
  if v_gateway.revoked_at is not null then
    return false;
  end if;
  update fleet.gateways
  set revoked_at = now()
  where gateway_id = v_gateway.gateway_id;
  perform fleet.audit('gateway.revoked', 'gateway:' || p_name);
  return true;
end
$$;

comment on function fleet.revoke_gateway(text) is
  'Revokes a gateway''s token: from the commit on, servers refuse it. Returns false if it was already revoked. '
  'Example: select fleet.revoke_gateway(''warehouse-3'');';
