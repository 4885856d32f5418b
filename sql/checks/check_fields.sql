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
  v_devices bigint;
  v_refused bigint;
  v_fields text;
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
end
$$;

comment on function fleet.check_fields(timestamptz) is
  'The part of fleet.check() about what agents send: fields that could not be read, and heartbeats that were refused.';
