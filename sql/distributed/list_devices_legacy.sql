create or replace function fleet.list_devices_legacy(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status_legacy
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.refuse_distributed('fleet.list_devices_legacy()');
end
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer, text, text) is
  'Not available in a distributed store: every call is refused. Use fleet.list_devices().';
