-- Nobody knows the tokens of these devices. fleet.renew_token() gives a new one to a device that is still in use.
create or replace function fleet.enroll_unknown(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows bigint;
begin
  if a.unknown_devices <> 'enroll' then
    return false;
  end if;
  -- Blocks other enrolments: no other device may get a number between this look and the insert.
  lock table fleet.devices in share row exclusive mode;
  if a.match_by = 'device_id' then
    -- A numeric id stays the same, because no device is enrolled under it, and new devices get higher ones.
    perform setval(pg_get_serial_sequence('fleet.devices', 'device_id'), greatest(
      (
        select max(r.source_device::bigint)
        from fleet.import_refusals r
        where r.source = a.source and r.reason = 'unknown_device' and r.source_device <> ''
      ),
      nextval(pg_get_serial_sequence('fleet.devices', 'device_id'))
    ));
  end if;
  with unknown as (
    select r.source_device, r.first_ts,
      case a.match_by
        when 'device_id' then r.source_device::bigint
        else nextval(pg_get_serial_sequence('fleet.devices', 'device_id'))
      end as device_id
    from fleet.import_refusals r
    where r.source = a.source and r.reason = 'unknown_device'
      and btrim(r.source_device) <> '' and length(r.source_device) <= 200
      -- A device that was erased does not come back with an old table.
      and not (
        a.match_by = 'device_id'
        and exists (select from fleet.erasures e where e.device_id::text = r.source_device)
      )
  ),
  enrolled as (
    insert into fleet.devices (device_id, alias, token_hash)
    overriding system value
    select u.device_id, u.source_device, fleet.hash_token(fleet.make_device_token(u.device_id))
    from unknown u
    order by u.source_device
    on conflict do nothing
    returning device_id, alias
  ),
  mapped as (
    insert into fleet.import_devices (source, source_device, device_id)
    select a.source, e.alias, e.device_id
    from enrolled e
    where a.match_by = 'map'
    on conflict do nothing
  ),
  gone as (
    delete from fleet.import_refusals r
    using enrolled e
    where r.source = a.source and r.reason = 'unknown_device' and r.source_device = e.alias
  )
  select count(*) into v_rows from enrolled;
  if v_rows > 0 then
    perform fleet.record_event('import.enroll', p_rows => v_rows, p_detail => format('devices of %s', a.source));
  end if;
  return false;
end
$$;

comment on function fleet.enroll_unknown(fleet.imports) is
  'Enrolls the devices of a table that is being imported and that are not enrolled yet, if p_unknown_devices asks for that; '
  'numeric ids stay the same.';
