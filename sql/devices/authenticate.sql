create or replace function fleet.authenticate(p_token_hash bytea)
returns table (
  kind text, device_id bigint, gateway_id bigint, name text, cohort text, own_interval_s integer, next_interval_s integer
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'device', d.device_id, null::bigint, d.alias, d.cohort, extract(epoch from d.heartbeat_interval)::integer,
    extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
  from fleet.devices d
  left join fleet.cohorts c on c.cohort = d.cohort
  where d.token_hash = p_token_hash and d.revoked_at is null
  union all
  select 'gateway', null, g.gateway_id, g.gateway_name, null, null, null
  from fleet.gateways g
  where g.token_hash = p_token_hash and g.revoked_at is null;
$$;

comment on function fleet.authenticate(bytea) is
  'Returns whose token has this SHA-256: a device (with its own interval, and the interval to ask for, which its cohort may '
  'lengthen) or a gateway. Returns no row if the token is unknown or revoked.';
