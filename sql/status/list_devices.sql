-- One page by keyset. The query is built for each call: the best index depends on the arguments, and one plan for all arguments
-- would suit none of them.
create or replace function fleet.list_devices(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
-- Read an index in order, and stop at the end of the page. Too low an estimate must not make it read the whole table.
set enable_bitmapscan = off
set max_parallel_workers_per_gather = 0
set random_page_cost = 1
as $$
declare
  v_found text := 'select ls.device_id from fleet.device_last_status ls where ls.device_id > $3';
  v_filter text := ' where true';
begin
  if p_status is not null then
    v_filter := v_filter || ' and d.status = $1';
  end if;
  if p_older_than is not null then
    v_filter := v_filter || ' and d.last_received_at < now() - $2';
    v_found := v_found || ' and ls.last_received_at < now() - $2';
  end if;
  if p_cohort is not null then
    v_filter := v_filter || ' and d.cohort = $5';
  end if;
  if p_alias is not null then
    v_filter := v_filter || ' and d.alias = $6';
  end if;

  if p_alias is not null then
    v_found := null;  -- at most one device, which the alias finds faster than a mark
  elsif p_status = 'clock_skewed' then
    v_found := v_found || ' and ls.status = ''clock_skewed''';
  elsif p_status = 'offline' and fleet.marks_hold() then
    v_found := v_found || ' and ls.is_silent';
  elsif p_older_than is not null and fleet.marks_hold(p_older_than) then
    -- Devices with such long intervals may be silent for that long without a mark.
    if (select max(d.heartbeat_interval) from fleet.devices d) > p_older_than / 2 then
      v_found := v_found || ' and not ls.is_silent'
        ' and ls.device_id in (select d.device_id from fleet.devices d where d.heartbeat_interval > $2 / 2)'
        ' union all ' || v_found;
    end if;
    v_found := v_found || ' and ls.is_silent';
  else
    v_found := null;
  end if;

  if v_found is null then
    return query execute
      'select d.* from fleet.device_status d' || v_filter || ' and d.device_id > $3 order by d.device_id limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;
  -- OFFSET 0 keeps the planner from joining the whole fleet to a few devices: it cannot guess how many have a status.
  return query execute 'select d.* from (' || v_found || ') found cross join lateral ('
    'select s.* from fleet.device_status s where s.device_id = found.device_id offset 0) d'
    || v_filter || ' order by found.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer, text, text) is
  'A page of fleet.device_status in order of device_id, after a given device_id. Filters by status, by time since it was '
  'heard from, by cohort and by alias. '
  'Example: select alias from fleet.list_devices(''offline'', ''12 minutes'');';
