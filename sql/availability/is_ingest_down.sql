-- Only devices that were heard from in the day before count: devices that are off for good would make any pause look long.
create or replace function fleet.is_ingest_down(p_newest timestamptz, p_now timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  select case
    when p_now - p_newest > (select s.ingest_gap from fleet.settings s) then exists (
      -- The first devices nearly always decide it. Nobody has to look at a million of them in each read of an outage.
      select
      from (values (10000), (null)) as t (most)
      cross join lateral (
        -- A device that announced its next heartbeat for later owes none before.
        select sum(
          extract(
            epoch from greatest(
              least(p_now - p_newest, p_now - least(h.last_received_at, p_newest) - fleet.excused(h.next_in_s, e.expected)),
              interval '0'
            )
          ) / extract(epoch from e.expected)
        ) as due
        from (
          select ls.device_id, ls.last_received_at, ls.next_in_s
          from fleet.device_last_status ls
          where ls.last_received_at > p_newest - interval '1 day'
          limit t.most
        ) h
        cross join lateral (
          select fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
          from fleet.devices d
          left join fleet.cohorts c on c.cohort = d.cohort
          where d.device_id = h.device_id and d.revoked_at is null
          offset 0
        ) e
      ) n
      where n.due >= 20
    )
    else false
  end;
$$;

comment on function fleet.is_ingest_down(timestamptz, timestamptz) is
  'Whether nothing has come in from any device for so long that the fault must be ours: for longer than settings.ingest_gap, '
  'and at least 20 heartbeats were due in that time. Takes the newest received_at, and the time to judge by.';
