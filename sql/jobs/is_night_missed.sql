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
        and e.at <= clock_timestamp()  -- the clock may have run ahead
    )
    -- In a new store the first night is still to come.
    and exists (select from fleet.hb_partitions p where p.created_at <= p_now - interval '25 hours');
end
$$;

comment on function fleet.is_night_missed(timestamptz) is
  'True if fleet.nightly() has not begun for 25 hours. fleet.maintain() then runs it.';
