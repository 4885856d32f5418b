-- Only devices that were heard from in the day before count: devices that are off for good would make any pause look long.
create or replace function fleet.is_ingest_down(p_newest timestamptz, p_now timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select case
    when p_now - p_newest > (select s.ingest_gap from fleet.settings s) then (
      select coalesce(sum(
        extract(epoch from p_now - p_newest)
        / extract(epoch from fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now))
      ), 0) >= 20
      from fleet.devices d
      join fleet.device_last_status ls using (device_id)
      left join fleet.cohorts c on c.cohort = d.cohort
      where d.revoked_at is null and ls.last_received_at > p_newest - interval '1 day'
    )
    else false
  end;
$$;

comment on function fleet.is_ingest_down(timestamptz, timestamptz) is
  'Whether nothing has come in from any device for so long that the fault must be ours: for longer than settings.ingest_gap, '
  'and at least 20 heartbeats were due in that time. Takes the newest received_at, and the time to judge by.';
