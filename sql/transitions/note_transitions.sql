-- Ingest has locked the rows already. Other callers lock them here, in the order of ingest. Ingest never notifies the notifier,
-- because a NOTIFY takes a lock that commits would wait for; the notifier looks every two seconds.
create or replace function fleet.note_transitions(p_device_ids bigint[], p_now timestamptz default null) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_changes fleet.device_transitions[];
  v_base bigint;
  v_ids bigint[];
begin
  if p_now is not null then
    perform fleet.not_in_future(p_now);
    -- Only those that change are locked. What they do meanwhile is seen afterwards.
    p_device_ids := array(select distinct c.device_id from fleet.status_changes(p_device_ids, p_now) c);
    perform from fleet.device_last_status ls where ls.device_id = any (p_device_ids) order by ls.device_id for update;
  end if;
  v_changes := array(select c from fleet.status_changes(p_device_ids, p_now) c);
  if cardinality(v_changes) = 0 then
    return 0;
  end if;

  v_base := fleet.feed_base();
  with changes as (
    select c.*, ls.ip, ls.late_after_s,
      -- When the silence began that this row tells of.
      case when c.status in ('late', 'offline') then
        case when ls.last_received_at <= c.since then ls.last_received_at else ls.gap_from end
      end as heard_at
    from unnest(v_changes) with ordinality as c (
      transition_id, position, device_id, cohort, at, since, event, status, previous_status, previous_since, previous_for, reason,
      incident_id, battery_pct, network_type, agent_version, nth
    )
    join fleet.device_last_status ls using (device_id)
  ),
  explained as (
    select c.*, i.incident_id as in_incident,
      case when c.heard_at is not null then coalesce(
        (select case n.kind when 'ingest' then 'ingest_down' else n.kind || '_silent' end
          from fleet.incidents n where n.incident_id = i.incident_id),
        case when fleet.was_ingest_down(c.heard_at) then 'ingest_down' end,
        fleet.silence_reason(c.device_id, c.heard_at)
      ) end as why
    from changes c
    left join lateral (
      select fleet.incident_of(c.cohort, fleet.network_of(c.ip), c.heard_at, c.late_after_s) as incident_id where c.heard_at is not null
    ) i on true
  ),
  told as (
    -- What ends a silence has its reason and its incident.
    select e.*,
      coalesce(e.why, e.reason, case when e.event = 'back' then lag(e.why) over w end) as known_reason,
      coalesce(e.in_incident, case when e.event = 'back' then coalesce(
        lag(e.in_incident) over w,
        (
          select t.incident_id from fleet.device_transitions t
          where t.device_id = e.device_id and t.status = 'offline'
          order by t.transition_id desc
          limit 1
        )
      ) end) as known_incident
    from explained e
    window w as (partition by e.device_id order by e.nth)
  ),
  written as (
    insert into fleet.device_transitions (
      position, device_id, cohort, at, since, event, status, previous_status, previous_since, reason, incident_id, battery_pct,
      network_type, agent_version
    )
    select v_base + pg_current_xact_id()::text::bigint, t.device_id, t.cohort, t.at, t.since, t.event, t.status,
      t.previous_status, t.previous_since, t.known_reason, t.known_incident, t.battery_pct, t.network_type, t.agent_version
    from told t
    order by t.nth
    returning transition_id, device_id, since, status, reason, incident_id
  ),
  noted as (
    update fleet.device_last_status ls
    set noted_status = w.status, noted_since = w.since,
      noted_reason = case when w.status in ('late', 'offline') then w.reason end
    from (select distinct on (w.device_id) w.* from written w order by w.device_id, w.transition_id desc) w
    where ls.device_id = w.device_id
  )
  select array_agg(w.transition_id order by w.transition_id) into v_ids from written w;
  if exists (select from fleet.webhooks) then
    perform fleet.queue_messages(v_ids, null, null);
  end if;
  return cardinality(v_ids);
end
$$;

comment on function fleet.note_transitions(bigint[], timestamptz) is
  'Writes the changes of status of these devices that were not noted yet to fleet.device_transitions, with their reasons, and '
  'queues the messages about them: without p_now, of devices that a heartbeat of this transaction came from. Returns how many. '
  'Called by ingest and each minute by fleet.mark_silent().';
