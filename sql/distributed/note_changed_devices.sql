create or replace function fleet.note_changed_devices(p_max_rows integer default 5000, p_now timestamptz default now())
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_ids bigint[];
  v_seconds integer[];
begin
  perform fleet.not_in_future(p_now);
  with taken as (
    delete from fleet.changed_devices c
    where c.device_id in (
      select i.device_id from fleet.changed_devices i order by i.device_id limit p_max_rows for update skip locked
    )
    returning c.device_id
  )
  select coalesce(array_agg(t.device_id order by t.device_id), array[]::bigint[]) into v_ids from taken t;
  v_seconds := array(
    select floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))::integer
    from unnest(v_ids) with ordinality u (device_id, nth)
    left join fleet.devices d on d.device_id = u.device_id
    order by u.nth
  );
  insert into fleet.device_last_status as ls (device_id, late_after_s)
  select f.device_id, f.late_after_s
  from unnest(v_ids, v_seconds) as f (device_id, late_after_s)
  where f.late_after_s is not null
  order by f.device_id
  on conflict (device_id) do update
    set late_after_s = excluded.late_after_s
    where ls.late_after_s is distinct from excluded.late_after_s;
  perform fleet.note_transitions(v_ids, p_now);
  return cardinality(v_ids);
end
$$;

comment on function fleet.note_changed_devices(integer, timestamptz) is
  'The form of fleet.note_changed_devices() for a distributed store: notes what follows from a change of devices, for at most so '
  'many of them. Returns how many.';
