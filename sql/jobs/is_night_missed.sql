create or replace function fleet.is_night_missed(p_now timestamptz default now()) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.not_in_future(p_now);
  return not exists (
      select from fleet.events e
      where e.event = 'nightly.start' and e.at > p_now - interval '25 hours'
    )
    -- A new store waits for its first night.
    and exists (select from fleet.hb_partitions p where p.created_at <= p_now - interval '25 hours');
end
$$;

comment on function fleet.is_night_missed(timestamptz) is
  'True when fleet.nightly() was not begun for 25 hours: fleet.maintain() then makes up for it.';
