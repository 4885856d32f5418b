-- One page by keyset. The query is built for each call: the best index depends on the arguments, and one plan for all arguments
-- would suit none of them. Candidates are found in order of device_id by cheap conditions that every device with this status
-- meets. Only a candidate's status is derived, and reading stops at the end of the page.
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
-- Read an index in order. Too low or too high an estimate must not make it read and sort a whole table.
set enable_bitmapscan = off
set enable_seqscan = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set random_page_cost = 1
as $$
declare
  c_small_cohort constant integer := 5000;
  v_shortest interval;
  v_longest interval;
  v_where text := '';
  v_found text;
  v_filter text := case
    when p_status = 'unity_down'
      then ' where d.unity_running is false and d.status in (''online'', ''late'', ''clock_skewed'')'
    when p_status is not null then ' where d.status = $1'
    else ' where true'
  end;
begin
  if p_status = 'revoked' then
    return query execute
      'select r.* '
      'from fleet.devices d '
      'left join fleet.device_last_status ls using (device_id) '
      'left join fleet.cohorts c on c.cohort = d.cohort '
      -- By name, so that a field that is added later needs no change here.
      'cross join lateral jsonb_populate_record(null::fleet.device_status, coalesce(to_jsonb(ls), ''{}'') || jsonb_build_object('
      '  ''device_id'', d.device_id, ''alias'', d.alias, ''cohort'', d.cohort, ''status'', $1, ''enrolled_at'', d.enrolled_at,'
      '  ''seconds_since'', extract(epoch from now() - ls.last_received_at)::bigint,'
      '  ''heartbeat_interval'', greatest(d.heartbeat_interval, c.min_interval))) r '
      'where d.revoked_at is not null and d.device_id > $3 and ($2 is null or ls.last_received_at < now() - $2)'
      || case when p_cohort is not null then ' and d.cohort = $5' else '' end
      || case when p_alias is not null then ' and d.alias = $6' else '' end
      || ' order by d.device_id limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;
  if p_older_than is not null then
    v_filter := v_filter || ' and d.last_received_at < now() - $2';
    v_where := ' and ls.last_received_at < now() - $2';
  end if;
  if p_alias is not null then
    -- At most one device.
    return query execute
      'select d.* from fleet.device_status d' || v_filter || ' and d.device_id > $3 and d.alias = $6'
      || case when p_cohort is not null then ' and d.cohort = $5' else '' end || ' limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;

  -- No device is expected more often than v_shortest or less often than v_longest; see fleet.expected_interval().
  if p_status in ('online', 'late') then
    select min(d.heartbeat_interval), greatest(
      max(d.heartbeat_interval), (select max(greatest(c.min_interval, c.last_interval)) from fleet.cohorts c)
    )
    into v_shortest, v_longest
    from fleet.devices d;
  end if;
  v_where := v_where || case p_status
    when 'new' then ' and ls.status is null and ls.last_received_at is null'
    -- The shorter the interval, the longer is what fleet.excused() allows.
    when 'online' then ' and ls.status is distinct from ''clock_skewed'''
      ' and now() - ls.last_received_at - fleet.excused(ls.next_in_s, $7) <= fleet.late_after($8)'
    when 'late' then ' and ls.status is distinct from ''clock_skewed'''
      ' and now() - ls.last_received_at - fleet.excused(ls.next_in_s, $8) > fleet.late_after($7)'
      ' and now() - ls.last_received_at - fleet.excused(ls.next_in_s, $7)'
      ' <= greatest((select s.offline_after from fleet.settings s), 2 * $8)'
    -- Nobody is offline before the time for which it announced its next heartbeat.
    when 'offline' then
      ' and now() - ls.last_received_at'
      ' > greatest((select s.offline_after from fleet.settings s), ls.next_in_s * interval ''1 second'')'
    when 'clock_skewed' then ' and ls.status = ''clock_skewed'''
    when 'unity_down' then ' and ls.status <> ''ok'' and ls.unity_running is false'
    else ''
  end;

  if p_cohort is not null and (
    select count(*) from (select from fleet.devices d where d.cohort = p_cohort limit c_small_cohort) f
  ) < c_small_cohort then
    v_found := 'select d.device_id from fleet.devices d where d.cohort = $5 and d.device_id > $3';
    if v_where <> '' then
      v_found := 'select f.device_id from (' || v_found || ' order by d.device_id offset 0) f cross join lateral ('
        'select from fleet.device_last_status ls where ls.device_id = f.device_id' || v_where || ' offset 0) ls';
    end if;
  else
    if v_where = '' then
      v_found := 'select d.device_id from fleet.devices d where d.device_id > $3'
        || case when p_cohort is not null then ' and d.cohort = $5' else '' end;
    else
      v_found := 'select ls.device_id from fleet.device_last_status ls where ls.device_id > $3' || v_where;
      if p_status in ('new', 'clock_skewed', 'unity_down') then
        null;  -- these have an index
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
      end if;
      if p_cohort is not null then
        v_found := 'select f.device_id from (' || v_found || ' order by 1 offset 0) f cross join lateral ('
          'select from fleet.devices c where c.device_id = f.device_id and c.cohort = $5 offset 0) c';
      end if;
    end if;
  end if;

  -- OFFSET 0 keeps the planner from joining the whole fleet to a few devices: it cannot guess how many have a status.
  return query execute 'select d.* from (' || v_found || ') found cross join lateral ('
    'select s.* from fleet.device_status s where s.device_id = found.device_id offset 0) d'
    || v_filter || ' order by found.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias, v_shortest, v_longest;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer, text, text) is
  'A page of fleet.device_status in order of device_id, after a given device_id. Filters by status, by time since it was '
  'heard from, by cohort and by alias. Two more statuses can be asked for: unity_down (the devices of fleet.unity_down), and '
  'revoked (devices whose token was revoked, which fleet.device_status leaves out). '
  'Example: select alias from fleet.list_devices(''offline'', ''12 minutes'');';
