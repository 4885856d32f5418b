create or replace function fleet.move_device(p_device_id bigint, p_cohort text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device fleet.devices := fleet.get_device(p_device_id);
begin
  perform fleet.check_cohort(p_cohort, 'Example: select fleet.move_device(42, ''lobby'');');
  if v_device.cohort = p_cohort then
    return false;
  end if;
  update fleet.devices set cohort = p_cohort where device_id = p_device_id;
  perform fleet.audit('device.moved', 'device:' || p_device_id, to_jsonb(v_device.cohort), to_jsonb(p_cohort));
  perform fleet.record_event(
    'device.moved',
    p_detail => format(
      'device %s (%s): cohort %s, was %s; by %s', p_device_id, v_device.alias, p_cohort, v_device.cohort,
      (fleet.current_actor()).actor
    )
  );
  return true;
end
$$;

comment on function fleet.move_device(bigint, text) is
  'Moves a device to another cohort. The device learns that cohort''s interval from its next answer. Returns false if it is '
  'already there. '
  'Example: select fleet.move_device(42, ''lobby'');';
