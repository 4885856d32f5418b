create or replace function fleet.may_reach(p_cohort text) returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(nullif(current_setting('fleet.cohorts', true), '')::jsonb ? p_cohort, true);
$$;

comment on function fleet.may_reach(text) is
  'Whether devices of this cohort are known to the key or session that acts; see fleet.act(). Example: '
  'select fleet.may_reach(''lobby'');';
