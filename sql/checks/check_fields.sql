create or replace function fleet.check_fields(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  c_named constant integer := 10;
  v_devices bigint;
  v_refused bigint;
  v_fields text;
  v_names text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'unreadable_fields';
  with recent as (
    select f.*
    from fleet.device_unreadable_fields f
    where f.last_at > p_now - interval '1 hour'
  )
  select count(distinct r.device_id), count(distinct r.device_id) filter (where r.field in ('ts', 'device_id', 'body')),
    (
      select string_agg(
        format('%s of %s devices (device %s sent %s)', g.field, g.devices, g.device_id, g.example), ', ' order by g.devices desc, g.field
      )
      from (
        select s.field, count(*) as devices, (array_agg(s.device_id order by s.last_at desc, s.device_id))[1] as device_id,
          (array_agg(s.example order by s.last_at desc, s.device_id))[1] as example
        from recent s
        group by s.field
      ) g
    )
  into v_devices, v_refused, v_fields
  from recent r;
  -- One odd device among many is no trouble of the fleet. A heartbeat that is refused is lost, so that is always said.
  status := case
    when v_refused > 0 or v_devices > 0
      and v_devices * 100 >= (select f.devices from fleet.fleet_summary f where f.cohort = '(all)' limit 1)
      then 'warn'
    else 'ok'
  end;
  detail := case
    when v_devices = 0 then 'every field that devices sent in the last hour could be read'
    else 'in the last hour these could not be read: ' || v_fields
  end;
  remedy := case
    when status <> 'ok' then
      e'-- correct what the agents send; an hour later this is clear. ts, device_id and body: the whole heartbeat was refused'
      '\nselect * from fleet.unreadable_fields where last_at > now() - interval ''1 hour'' order by last_at desc limit 50;'
  end;
  return next;

  check_name := 'slowed_devices';
  -- No join: the fleet may be large, and only the devices that are named are looked up.
  select count(*), sum(f.times),
    string_agg(
      format(
        'device %s (%s): %s since %s', f.device_id,
        (select d.alias from fleet.devices d where d.device_id = f.device_id), f.times, to_char(f.first_at, 'HH24:MI "UTC"')
      ),
      '; ' order by f.nth
    ) filter (where f.nth <= c_named)
  into v_devices, v_refused, v_names
  from (
    select s.device_id, sum(s.times) as times, min(s.first_at) as first_at,
      row_number() over (order by sum(s.times) desc, s.device_id) as nth
    from fleet.device_slowdowns s
    where s.last_at > p_now - interval '1 hour'
    group by s.device_id
  ) f;
  status := case when v_devices = 0 then 'ok' else 'warn' end;
  detail := case
    when v_devices = 0 then 'no device sent more requests in the last hour than the servers accept'
    else format(
      '%s devices sent more requests in the last hour than the servers accept. Refused (429) were %s requests: %s%s',
      v_devices, v_refused, v_names, case when v_devices > c_named then '; …' end
    )
  end;
  remedy := case
    when status <> 'ok' then
      e'-- fix what their agents do; an hour after the last refused request this is clear. Nothing is lost, and others are not slowed'
      '\nselect * from fleet.slowed_devices where last_at > now() - interval ''1 hour'' order by times desc limit 50;'
  end;
  return next;
end
$$;

comment on function fleet.check_fields(timestamptz) is
  'The part of fleet.check() about what agents send: fields that could not be read, heartbeats that were refused because of them, '
  'and devices that send more requests than the servers accept.';
