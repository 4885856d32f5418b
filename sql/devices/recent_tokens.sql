create or replace function fleet.recent_tokens(p_limit integer)
returns table (
  token_hash text, kind text, device_id bigint, gateway_id bigint, cohort text, own_interval_s integer, next_interval_s integer
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select encode(g.token_hash, 'base64'), 'gateway', null::bigint, g.gateway_id, null, null, null
  from fleet.gateways g
  where g.revoked_at is null
  union all
  (
    select encode(d.token_hash, 'base64'), 'device', d.device_id, null, d.cohort,
      extract(epoch from d.heartbeat_interval)::integer,
      extract(epoch from greatest(d.heartbeat_interval, c.min_interval))::integer
    from fleet.devices d
    left join fleet.cohorts c on c.cohort = d.cohort
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    where d.revoked_at is null
    order by ls.last_received_at desc nulls last
    limit p_limit
  )
  limit p_limit;
$$;

comment on function fleet.recent_tokens(integer) is
  'Returns what fleet.authenticate() would answer for all gateways and for the devices heard from last, so that a server need '
  'not ask for each of them after it starts. Hashes are base64.';
