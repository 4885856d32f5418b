create or replace function fleet.move_device(p_device_id bigint, p_cohort text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alias text;
  v_old text;
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Example: select fleet.move_device(42, ''lobby'');';
  end if;
  select d.alias, d.cohort into v_alias, v_old from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_old = p_cohort then
    return false;
  end if;
  update fleet.devices set cohort = p_cohort where device_id = p_device_id;
  perform fleet.record_event(
    'device.moved',
    p_detail => format('device %s (%s): cohort %s, was %s; by %s', p_device_id, v_alias, p_cohort, v_old, session_user)
  );
  return true;
end
$$;

comment on function fleet.move_device(bigint, text) is
  'Moves a device to another cohort. The device learns that cohort''s interval from its next answer. Returns false if it is '
  'already there. '
  'Example: select fleet.move_device(42, ''lobby'');';
