create or replace function fleet.end_incidents(p_now timestamptz default now()) returns bigint[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_ended bigint[];
  v_incident fleet.incidents;
  v_ids bigint[];
  v_devices bigint;
  v_back bigint;
  v_is_heard boolean;
  v_gap_to timestamptz;
  v_offline_after interval := (select s.offline_after from fleet.settings s);
begin
  perform fleet.not_in_future(p_now);
  select w.gap_from is null or w.gap_to is not null, w.gap_to into v_is_heard, v_gap_to from fleet.silence_watch w;
  for v_incident in select i.* from fleet.incidents i where i.ended_at is null order by i.incident_id loop
    v_ids := array(
      select distinct t.device_id
      from fleet.device_transitions t
      where t.incident_id = v_incident.incident_id and t.status = 'offline'
    );
    -- A device that was deleted or revoked since does not come back.
    select count(*), count(*) filter (where ls.noted_status not in ('late', 'offline'))
    into v_devices, v_back
    from fleet.device_last_status ls
    where ls.device_id = any (v_ids) and ls.noted_status is not null and ls.noted_status <> 'revoked';
    update fleet.incidents i
    set ended_at = p_now
    where i.incident_id = v_incident.incident_id
      and (
        v_back * 2 >= v_devices
        -- Heartbeats come in again, and those that could come back did.
        or i.kind = 'ingest' and v_is_heard and p_now - greatest(v_gap_to, i.seen_at) > v_offline_after
      );
    if found then
      v_ended := v_ended || v_incident.incident_id;
    end if;
  end loop;
  if v_ended is not null and exists (select from fleet.webhooks) then
    perform fleet.queue_messages(null, null, v_ended);
  end if;
  return v_ended;
end
$$;

comment on function fleet.end_incidents(timestamptz) is
  'The form of fleet.end_incidents() for a distributed store: ends the incidents of which at least half of the devices are back, and '
  'that of ingest when heartbeats have come in again for settings.offline_after; returns them; null if there are none.';
