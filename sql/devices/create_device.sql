create or replace function fleet.create_device(
  p_alias text,
  p_cohort text default 'default',
  out device_id bigint,
  out token text
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_device_id bigint := nextval(pg_get_serial_sequence('fleet.devices', 'device_id'));
  v_other bigint;
begin
  if p_alias is null or btrim(p_alias) = '' or length(p_alias) > 200 then
    raise exception using
      errcode = 'FL422',
      message = 'alias must have 1 to 200 characters',
      hint = 'Example: select fleet.enroll_device(''lobby-tablet-7'');';
  end if;
  perform fleet.check_cohort(p_cohort, 'Leave it out for the cohort named default.');
  token := fleet.make_device_token(v_device_id);
  insert into fleet.devices as d (device_id, alias, cohort, token_hash)
  overriding system value
  values (v_device_id, p_alias, p_cohort, fleet.hash_token(token))
  on conflict (alias) do nothing
  returning d.device_id into create_device.device_id;
  if not found then
    select d.device_id into v_other from fleet.devices d where d.alias = p_alias and fleet.may_reach(d.cohort);
    raise exception using
      errcode = 'FL409',
      message = format('a device with alias %s is already enrolled', p_alias),
      hint = case when v_other is null then 'Choose another alias: aliases are unique in the whole fleet.' else format(
        'If this is device %s after a reset or a reinstall, give it a new token: '
        'select fleet.renew_token(%s); or POST /admin/devices/%s/token. '
        'If it is another device, choose another alias: aliases are unique, including those of revoked devices.',
        v_other, v_other, v_other
      ) end;
  end if;
  perform fleet.audit(
    'device.enrolled', 'device:' || v_device_id, p_after => jsonb_build_object('alias', p_alias, 'cohort', p_cohort)
  );
end
$$;

comment on function fleet.create_device(text, text) is
  'Enrolls a device. Returns its id and its token, which is shown only now. '
  'Example: select * from fleet.create_device(''lobby-tablet-7'', ''lobby'');';
