create or replace function fleet.end_incidents(p_now timestamptz default now()) returns bigint[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_ended bigint[];
begin
  perform fleet.not_in_future(p_now);
  with over as (
    select i.incident_id
    from fleet.incidents i
    cross join fleet.settings s
    cross join fleet.silence_watch w
    cross join lateral (
      select count(*) as devices, count(*) filter (where ls.noted_status not in ('late', 'offline')) as back
      from (
        select distinct t.device_id
        from fleet.device_transitions t
        where t.incident_id = i.incident_id and t.status = 'offline'
      ) t
      -- A device that was deleted or revoked since does not come back.
      left join fleet.device_last_status ls using (device_id)
      where ls.noted_status is not null and ls.noted_status <> 'revoked'
    ) m
    where i.ended_at is null
      and (
        m.back * 2 >= m.devices
        -- Heartbeats come in again, and those that could come back did.
        or i.kind = 'ingest' and (w.gap_from is null or w.gap_to is not null)
          and p_now - greatest(w.gap_to, i.seen_at) > s.offline_after
      )
  ),
  ended as (
    update fleet.incidents i
    set ended_at = p_now
    from over o
    where i.incident_id = o.incident_id
    returning i.incident_id
  )
  select array_agg(e.incident_id order by e.incident_id) into v_ended from ended e;
  if v_ended is not null and exists (select from fleet.webhooks) then
    perform fleet.queue_messages(null, null, v_ended);
  end if;
  return v_ended;
end
$$;

comment on function fleet.end_incidents(timestamptz) is
  'Ends the incidents of which at least half of the devices are back, and that of ingest when heartbeats have come in again for '
  'settings.offline_after; queues the messages about them, and returns them; null if there are none. Called each minute by '
  'fleet.mark_silent().';
