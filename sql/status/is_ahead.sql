create or replace function fleet.is_ahead(p_ts timestamptz, p_now timestamptz default now()) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p_ts > p_now + s.max_future from fleet.settings s;
$$;

comment on function fleet.is_ahead(timestamptz, timestamptz) is
  'Whether a time is further in the future than settings.max_future allows. '
  'Example: select fleet.is_ahead(now() + interval ''1 hour'');';
