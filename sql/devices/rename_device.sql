create or replace function fleet.rename_device(p_device_id bigint, p_alias text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device fleet.devices;
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
  end if;
  v_device := fleet.get_device(p_device_id);
  if v_device.alias = p_alias then
    return false;
  end if;
  begin
    update fleet.devices set alias = p_alias where device_id = p_device_id;
  exception when unique_violation then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias and fleet.may_reach(d.cohort);
    if v_other is null then
      raise exception using
        errcode = 'FL409',
        message = format('another device already has the alias %s; device %s keeps the alias %s', p_alias, p_device_id, v_device.alias),
        hint = 'Choose another alias: aliases are unique in the whole fleet.';
    end if;
    raise exception using
      errcode = 'FL409',
      message = format('device %s already has the alias %s; device %s keeps the alias %s', v_other, p_alias, p_device_id, v_device.alias),
      hint = format(
        'Aliases are unique, including those of revoked devices. '
        'Choose another, or rename the other device first: select fleet.rename_device(%s, %L);',
        v_other, left(p_alias, 190) || ' (old)'
      );
  end;
  perform fleet.audit('device.renamed', 'device:' || p_device_id, to_jsonb(v_device.alias), to_jsonb(p_alias));
  perform fleet.record_event(
    'device.renamed',
    p_detail => format(
      'device %s: %s, was %s; by %s', p_device_id, p_alias, v_device.alias, (fleet.current_actor()).actor
    )
  );
  return true;
end
$$;

comment on function fleet.rename_device(bigint, text) is
  'Gives a device another alias, also if it is revoked. Its token and heartbeats stay. Returns false if it already has that '
  'alias. '
  'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
