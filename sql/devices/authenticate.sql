create or replace function fleet.authenticate(p_token_hash bytea)
returns table (kind text, device_id bigint, gateway_id bigint, name text, cohort text, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'device', d.device_id, null::bigint, d.alias, d.cohort, d.next_interval_s
  from fleet.enrolled_devices d
  where d.token_hash = p_token_hash
  union all
  select 'gateway', null, g.gateway_id, g.gateway_name, null, null
  from fleet.gateways g
  where g.token_hash = p_token_hash and g.revoked_at is null;
$$;

comment on function fleet.authenticate(bytea) is
  'Returns whose token has this SHA-256: a device (with the interval to ask it for) or a gateway. Returns no row if the token is '
  'unknown or revoked. For calls that are not heartbeats: those are authenticated by fleet.ingest_batch(). '
  'Example: select * from fleet.authenticate(fleet.hash_token(''nxd_42_…''));';
