create or replace function fleet.authenticate(p_token_hash bytea)
returns table (kind text, device_id bigint, gateway_id bigint, name text, cohort text, next_interval_s integer)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'device', d.device_id, null::bigint, d.alias, d.cohort, extract(epoch from d.heartbeat_interval)::integer
  from fleet.devices d
  where d.token_hash = p_token_hash and d.revoked_at is null
  union all
  select 'gateway', null, g.gateway_id, g.gateway_name, null, null
  from fleet.gateways g
  where g.token_hash = p_token_hash and g.revoked_at is null;
$$;

comment on function fleet.authenticate(bytea) is
  'Whose token has this SHA-256: a device, a gateway, or (no row) nobody''s or a revoked one.';
