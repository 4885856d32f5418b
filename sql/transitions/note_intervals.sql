-- Apart from the update of the devices, and a few at a time: the rows of last status are locked by ingest, in another order.
create or replace function fleet.note_intervals(p_max_rows integer default 5000) returns integer
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with taken as (
    delete from fleet.changed_intervals c
    where c.device_id in (
      select i.device_id from fleet.changed_intervals i order by i.device_id limit p_max_rows for update skip locked
    )
    returning c.device_id
  ),
  found as (
    select ls.device_id, floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))::integer as late_after_s
    from fleet.device_last_status ls
    join fleet.devices d using (device_id)
    join taken t using (device_id)
    order by ls.device_id
    for update of ls
  ),
  noted as (
    update fleet.device_last_status ls
    set late_after_s = f.late_after_s
    from found f
    where ls.device_id = f.device_id
  )
  select count(*)::integer from taken;
$$;

comment on function fleet.note_intervals(integer) is
  'Writes device_last_status.late_after_s of devices whose interval was changed, for at most so many; returns how many. Called each '
  'minute by fleet.mark_silent().';
