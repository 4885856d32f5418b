-- Citus sends the conditions and the limit to each node, which looks through its own devices.
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
as $$
begin
  if p_status = 'revoked' then
    return query execute
      'select r.* '
      'from ('
      '  select d.device_id, d.alias, d.cohort, d.enrolled_at, to_jsonb(ls) as last, ls.last_received_at,'
      '    greatest(d.heartbeat_interval, c.min_interval) as asked'
      '  from fleet.device_last_status ls '
      '  join fleet.devices d using (device_id) '
      '  left join fleet.cohorts c on c.cohort = d.cohort '
      '  where d.revoked_at is not null and d.device_id > $3 and ($2 is null or ls.last_received_at < now() - $2)'
      || case when p_cohort is not null then ' and d.cohort = $5' else '' end
      || case when p_alias is not null then ' and d.alias = $6' else '' end
      || '  order by d.device_id limit $4) f '
      'cross join lateral jsonb_populate_record(null::fleet.device_status, f.last || jsonb_build_object('
      '  ''device_id'', f.device_id, ''alias'', f.alias, ''cohort'', f.cohort, ''status'', $1, ''enrolled_at'', f.enrolled_at,'
      '  ''seconds_since'', extract(epoch from now() - f.last_received_at)::bigint, ''heartbeat_interval'', f.asked)) r '
      'order by f.device_id'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;
  return query execute
    'select d.* from fleet.device_status d where d.device_id > $3'
    || case
      when p_status = 'unity_down' then ' and d.unity_running is false and d.status in (''online'', ''late'', ''clock_skewed'')'
      when p_status is not null then ' and d.status = $1'
      else ''
    end
    || case when p_older_than is not null then ' and d.last_received_at < now() - $2' else '' end
    || case when p_cohort is not null then ' and d.cohort = $5' else '' end
    || case when p_alias is not null then ' and d.alias = $6' else '' end
    || ' order by d.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer, text, text) is
  'The form of fleet.list_devices() for a distributed store: a page of fleet.device_status in order of device_id, with the same '
  'filters.';
