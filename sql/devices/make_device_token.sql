create or replace function fleet.make_device_token(p_device_id bigint) returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select fleet.make_token(format('nxd_%s_', p_device_id));
$$;

comment on function fleet.make_device_token(bigint) is
  'Returns a new token for a device: nxd_, its id in clear, and the secret. The id is for people and routers, and proves nothing: '
  'a token is known by the SHA-256 of its whole text.';
