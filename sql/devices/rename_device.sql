create or replace function fleet.rename_device(p_device_id bigint, p_alias text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old text;
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
  end if;
  select d.alias into v_old from fleet.devices d where d.device_id = p_device_id for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  if v_old = p_alias then
    return false;
  end if;
  begin
    update fleet.devices set alias = p_alias where device_id = p_device_id;
  exception when unique_violation then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias;
    raise exception using
      errcode = 'FL409',
      message = format('device %s already has the alias %s; device %s keeps the alias %s', v_other, p_alias, p_device_id, v_old),
      hint = format(
        'Aliases are unique, including those of revoked devices. '
        'Choose another, or rename the other device first: select fleet.rename_device(%s, %L);',
        v_other, left(p_alias, 190) || ' (old)'
      );
  end;
  perform fleet.record_event(
    'device.renamed', p_detail => format('device %s: %s, was %s; by %s', p_device_id, p_alias, v_old, session_user)
  );
  return true;
end
$$;

comment on function fleet.rename_device(bigint, text) is
  'Gives a device another alias, also if it is revoked. Its token and heartbeats stay. Returns false if it already has that '
  'alias. '
  'Example: select fleet.rename_device(42, ''lobby-tablet-8'');';
