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
  select d.*
  from fleet.device_status_legacy d
  where d.device_id > p_after
    and (p_status is null or d.status = p_status)
    and (p_older_than is null or d.last_received_at < now() - p_older_than)
    and (p_cohort is null or d.cohort = p_cohort)
    and (p_alias is null or d.alias = p_alias)
  order by d.device_id
  limit p_limit;
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer, text, text) is
  'The same as fleet.list_devices(), over fleet.device_status_legacy. '
  'Example: select alias from fleet.list_devices_legacy(''offline'', ''12 minutes'');';
