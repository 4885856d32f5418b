create or replace function fleet.fleet_summary_of(p_cohorts text[]) returns setof fleet.fleet_summary
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    with own as materialized (
      select s.* from fleet.fleet_summary s where s.cohort = any (p_cohorts) and s.cohort <> '(all)'
    )
    select '(all)', coalesce(sum(o.devices), 0)::bigint, coalesce(sum(o.online), 0)::bigint, coalesce(sum(o.late), 0)::bigint,
      coalesce(sum(o.offline), 0)::bigint, coalesce(sum(o.new), 0)::bigint, coalesce(sum(o.clock_skewed), 0)::bigint,
      coalesce(sum(o.unity_down), 0)::bigint, coalesce(min(o.counted_at), now())
    from own o
    union all
    (select o.* from own o order by o.cohort);
end
$$;

comment on function fleet.fleet_summary_of(text[]) is
  'As fleet.fleet_summary, of some cohorts; (all) is their sum. Used by the server for sessions that are bound to cohorts. '
  'Example: select * from fleet.fleet_summary_of(''{lobby,shop}'');';
