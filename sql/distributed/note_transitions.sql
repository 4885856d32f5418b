-- Locks nothing: only the job of each minute notes transitions here, and ingest does not write what it notes.
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
  v_known_ids bigint[];
  v_ips inet[];
  v_seconds integer[];
  v_heard_ats timestamptz[];
  v_gaps timestamptz[];
  v_noted_ids bigint[];
  v_sinces timestamptz[];
  v_statuses text[];
  v_reasons text[];
begin
  if p_now is not null then
    perform fleet.not_in_future(p_now);
  end if;
  v_changes := array(select c from fleet.status_changes(p_device_ids, p_now) c);
  if cardinality(v_changes) = 0 then
    return 0;
  end if;

  select array_agg(ls.device_id), array_agg(ls.ip), array_agg(ls.late_after_s), array_agg(ls.last_received_at), array_agg(ls.gap_from)
  into v_known_ids, v_ips, v_seconds, v_heard_ats, v_gaps
  from fleet.device_last_status ls
  where ls.device_id = any (p_device_ids);
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
    join unnest(v_known_ids, v_ips, v_seconds, v_heard_ats, v_gaps) as ls (device_id, ip, late_after_s, last_received_at, gap_from)
      using (device_id)
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
  )
  select array_agg(w.transition_id order by w.transition_id), array_agg(w.device_id order by w.transition_id),
    array_agg(w.since order by w.transition_id), array_agg(w.status order by w.transition_id),
    array_agg(case when w.status in ('late', 'offline') then w.reason end order by w.transition_id)
  into v_ids, v_noted_ids, v_sinces, v_statuses, v_reasons
  from written w;
  insert into fleet.device_last_status as ls (device_id, noted_status, noted_since, noted_reason)
  select distinct on (w.device_id) w.device_id, w.status, w.since, w.reason
  from unnest(v_noted_ids, v_statuses, v_sinces, v_reasons) with ordinality as w (device_id, status, since, reason, nth)
  order by w.device_id, w.nth desc
  on conflict (device_id) do update
    set noted_status = excluded.noted_status, noted_since = excluded.noted_since, noted_reason = excluded.noted_reason;
  if exists (select from fleet.webhooks) then
    perform fleet.queue_messages(v_ids, null, null);
  end if;
  return cardinality(v_ids);
end
$$;

comment on function fleet.note_transitions(bigint[], timestamptz) is
  'The form of fleet.note_transitions() for a distributed store: writes the changes of status of these devices that were not noted yet '
  'to fleet.device_transitions, and queues the messages about them. Returns how many. Called each minute by fleet.mark_silent().';
