create or replace function fleet.list_devices_legacy(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status_legacy
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  (
    select d.*
    from fleet.device_status_legacy d
    where d.device_id > p_after
      and (
        p_status is null or d.status = p_status
        or p_status = 'unity_down' and d.unity_running is false and d.status in ('online', 'late', 'clock_skewed')
      )
      and (p_older_than is null or d.last_received_at < now() - p_older_than)
      and (p_cohort is null or d.cohort = p_cohort)
      and (p_alias is null or d.alias = p_alias)
    order by d.device_id
    limit p_limit
  )
  union all
  -- The view leaves revoked devices out.
  select d.*
  from fleet.list_devices(p_status, p_older_than, p_after, p_limit, p_cohort, p_alias) d
  where p_status = 'revoked'
  order by device_id;
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer, text, text) is
  'The same as fleet.list_devices(), over fleet.device_status_legacy. '
  'Example: select alias from fleet.list_devices_legacy(''offline'', ''12 minutes'');';
