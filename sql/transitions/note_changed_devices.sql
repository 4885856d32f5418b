-- Apart from the update of the devices, and a few at a time: ingest locks the rows of last status, in another order, and must not
-- wait for a long transaction that changed devices.
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
  update fleet.device_last_status ls
  set late_after_s = f.late_after_s
  from (
    select l.device_id, floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))::integer as late_after_s
    from fleet.device_last_status l
    join fleet.devices d using (device_id)
    where l.device_id = any (v_ids)
    order by l.device_id
    for update of l
  ) f
  where ls.device_id = f.device_id and ls.late_after_s is distinct from f.late_after_s;
  perform fleet.note_transitions(v_ids, p_now);
  return cardinality(v_ids);
end
$$;

comment on function fleet.note_changed_devices(integer, timestamptz) is
  'Notes what follows from a change of devices, for at most so many of them: that they were revoked, or are no longer, and after '
  'which silence they are late. Returns how many. Called each minute by fleet.mark_silent().';
