create or replace function fleet.transitions_after(
  p_after text default null,
  p_limit integer default 100,
  p_cohort text default null
) returns table (
  cursor text, transition_id bigint, device_id bigint, alias text, cohort text, at timestamptz, since timestamptz, event text,
  status text, previous_status text, previous_for interval, reason text, incident_id bigint, battery_pct smallint,
  network_type text, agent_version text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := regexp_match(p_after, '^(\d{1,18})-(\d{1,18})$');
  v_position bigint;
  v_transition bigint;
  v_end bigint;
begin
  if p_after is not null and v_parts is null then
    raise exception using
      errcode = 'FL422',
      message = 'after is not a cursor of this feed',
      hint = 'Take it from an earlier answer, or leave it out to begin with the oldest transition.';
  end if;
  v_position := coalesce(v_parts[1]::bigint, 0);
  v_transition := coalesce(v_parts[2]::bigint, 0);
  -- Transactions that still run may have earlier positions.
  select f.base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint into v_end from fleet.transition_feed f;
  -- Two queries, so that each has its index: of a small cohort the transitions of all others are not read.
  if p_cohort is null then
    return query
      select format('%s-%s', t.position, t.transition_id), t.transition_id, t.device_id, d.alias, t.cohort, t.at, t.since, t.event,
        t.status, t.previous_status, t.previous_for, t.reason, t.incident_id, t.battery_pct, t.network_type, t.agent_version
      from fleet.device_transitions t
      left join fleet.devices d using (device_id)
      where (t.position, t.transition_id) > (v_position, v_transition)
        and t.position < v_end
      order by t.position, t.transition_id
      limit p_limit;
  else
    return query
      select format('%s-%s', t.position, t.transition_id), t.transition_id, t.device_id, d.alias, t.cohort, t.at, t.since, t.event,
        t.status, t.previous_status, t.previous_for, t.reason, t.incident_id, t.battery_pct, t.network_type, t.agent_version
      from fleet.device_transitions t
      left join fleet.devices d using (device_id)
      where t.cohort = p_cohort and (t.position, t.transition_id) > (v_position, v_transition)
        and t.position < v_end
      order by t.position, t.transition_id
      limit p_limit;
  end if;
end
$$;

comment on function fleet.transitions_after(text, integer, text) is
  'The feed of all transitions in the order in which they became visible: those after the cursor of an earlier row, or the oldest '
  'ones. None is skipped and none comes twice. Example: select * from fleet.transitions_after(null, 10);';
