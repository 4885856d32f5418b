create or replace function fleet.list_devices_of(
  p_cohorts text[],
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- A page of each cohort; the first devices of all these are the page.
  select d.*
  from (select distinct c from unnest(p_cohorts) c where p_cohort is null or c = p_cohort) k
  cross join lateral fleet.list_devices(p_status, p_older_than, p_after, p_limit, k.c, p_alias) d
  order by d.device_id
  limit p_limit;
$$;

comment on function fleet.list_devices_of(text[], text, interval, bigint, integer, text, text) is
  'As fleet.list_devices(), of the devices in some cohorts. Used by the server for keys that are bound to cohorts. '
  'Example: select alias from fleet.list_devices_of(''{lobby,shop}'', ''offline'');';
