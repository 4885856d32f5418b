create or replace function fleet.transitions_of_cohorts(
  p_cohorts text[],
  p_after text default null,
  p_limit integer default 100,
  p_cohort text default null
) returns table (
  cursor text, transition_id bigint, device_id bigint, alias text, cohort text, at timestamptz, since timestamptz, event text,
  status text, previous_status text, previous_for interval, reason text, incident_id bigint, battery_pct smallint,
  network_type text, agent_version text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- All see the same snapshot, so none is skipped.
  select t.cursor, t.transition_id, t.device_id,
    -- A device that has moved to another cohort since is not named.
    case when exists (select from fleet.devices d where d.device_id = t.device_id and d.cohort = any (p_cohorts)) then t.alias end,
    t.cohort, t.at, t.since, t.event, t.status, t.previous_status, t.previous_for, t.reason, t.incident_id, t.battery_pct,
    t.network_type, t.agent_version
  from (select distinct c from unnest(p_cohorts) c where p_cohort is null or c = p_cohort) k
  cross join lateral fleet.transitions_after(p_after, p_limit, k.c) t
  order by split_part(t.cursor, '-', 1)::bigint, t.transition_id
  limit p_limit;
$$;

comment on function fleet.transitions_of_cohorts(text[], text, integer, text) is
  'As fleet.transitions_after(), of some cohorts. Used by the server for keys that are bound to cohorts. '
  'Example: select * from fleet.transitions_of_cohorts(''{lobby,shop}'', null, 10);';
