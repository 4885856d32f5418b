create or replace function fleet.is_ingest_down(p_newest timestamptz, p_now timestamptz) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
begin
  if not coalesce(p_now - p_newest > (select s.ingest_gap from fleet.settings s), false) then
    return false;
  end if;
  -- Each node adds up its devices, so there is no need to stop after the first ones.
  return coalesce(
    (
      -- A device that announced its next heartbeat for later owes none before.
      select sum(
        extract(
          epoch from greatest(
            least(p_now - p_newest, p_now - least(ls.last_received_at, p_newest) - fleet.excused(ls.next_in_s, e.expected)),
            interval '0'
          )
        ) / extract(epoch from e.expected)
      )
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      cross join lateral (
        select fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
      ) e
      where ls.last_received_at > p_newest - interval '1 day' and d.revoked_at is null
    ) >= 20,
    false
  );
end
$$;

comment on function fleet.is_ingest_down(timestamptz, timestamptz) is
  'The form of fleet.is_ingest_down() for a distributed store. Whether nothing has come in from any device for so long that the fault '
  'must be ours: for longer than settings.ingest_gap, and at least 20 heartbeats were due in that time.';
