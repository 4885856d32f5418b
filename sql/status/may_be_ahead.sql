create or replace function fleet.may_be_ahead(p_now timestamptz default now()) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select not fleet.counts_hold(p_now) or exists (select from fleet.fleet_counts k where k.place = 1 and k.ahead > 0);
$$;

comment on function fleet.may_be_ahead(timestamptz) is
  'False if the counts of fleet.count_fleet() hold and say that no device was last heard from in the future, which happens after '
  'the clock of Postgres ran ahead. If true, look at the devices. Example: select fleet.may_be_ahead();';
