-- With an UPDATE by hand, somebody may move thousands of devices at once.
create or replace function fleet.audit_devices() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 100;
  v_ids bigint[];
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  v_ids := array(
    select n.device_id
    from changed n
    join was o using (device_id)
    where (n.alias, n.cohort, n.heartbeat_interval, n.revoked_at)
      is distinct from (o.alias, o.cohort, o.heartbeat_interval, o.revoked_at)
  );
  if cardinality(v_ids) > c_most then
    perform fleet.audit(
      'devices.changed', 'devices:' || cardinality(v_ids),
      jsonb_build_object('cohorts', (array(select distinct o.cohort from was o order by 1))[1:c_most]),
      jsonb_build_object('cohorts', (array(select distinct n.cohort from changed n order by 1))[1:c_most])
    );
    return null;
  end if;
  perform fleet.audit(
    'device.changed', 'device:' || d.device_id,
    (select jsonb_object_agg(w.key, w.value) from jsonb_each(d.was) w where w.value <> d.is_now -> w.key),
    (select jsonb_object_agg(w.key, w.value) from jsonb_each(d.is_now) w where w.value <> d.was -> w.key)
  )
  from (
    select n.device_id, to_jsonb(o) - '{token_hash,changed_at}'::text[] as was,
      to_jsonb(n) - '{token_hash,changed_at}'::text[] as is_now
    from changed n
    join was o using (device_id)
    where n.device_id = any (v_ids)
    order by n.device_id
  ) d;
  return null;
end
$$;

comment on function fleet.audit_devices() is
  'Trigger on fleet.devices: records an UPDATE by hand in fleet.audit_log, with a row for each device, or one row for more than '
  '100. The functions for devices record what they do themselves.';
