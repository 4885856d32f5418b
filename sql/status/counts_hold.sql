create or replace function fleet.counts_hold(p_now timestamptz default now()) returns boolean
language sql
stable
parallel safe
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The job counts once a minute. One run may be missed, and each takes some seconds. All rows are of the same time.
  select coalesce(k.counted_at <= n.moment and n.moment - k.counted_at < interval '150 seconds', false)
  from fleet.not_in_future(p_now) n (moment)
  left join fleet.fleet_counts k on k.place = 1;
$$;

comment on function fleet.counts_hold(timestamptz) is
  'Whether fleet.fleet_counts is recent enough to be used at this time. If false, devices are counted when somebody asks. See '
  'fleet.count_fleet(). Example: select fleet.counts_hold();';
