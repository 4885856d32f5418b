create or replace function fleet.note_first_status(p_device_ids bigint[], p_now timestamptz) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows integer;
begin
  perform fleet.not_in_future(p_now);
  update fleet.device_last_status ls
  set noted_status = case when i.is_first then i.status else ls.noted_status end,
    noted_since = case
      when not i.is_first then ls.noted_since
      when i.status in ('late', 'offline') then p_now
      else ls.last_received_at
    end,
    late_after_s = i.late_after_s
  from (
    select d.device_id, l.noted_status is null or l.last_received_at is null as is_first,
      floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))::integer as late_after_s,
      case
        when d.revoked_at is not null then 'revoked'
        when s.status = 'online' and l.status = 'unity_down' then 'unity_down'
        else s.status
      end as status
    from fleet.devices d
    join fleet.device_last_status l using (device_id)
    left join fleet.cohorts c on c.cohort = d.cohort
    cross join lateral (
      select fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
    ) e
    cross join lateral (
      select fleet.derive_status(
        l.status = 'clock_skewed', l.last_received_at, e.expected, (select t.offline_after from fleet.settings t),
        fleet.excused(l.next_in_s, e.expected), p_now
      ) as status
    ) s
    where d.device_id = any (p_device_ids)
      -- fleet.reconcile() forgets what was heard while the clock ran ahead.
      and (l.noted_status is null or l.late_after_s is null or l.last_received_at is null and l.noted_status not in ('new', 'revoked'))
    order by d.device_id
    for update of l
  ) i
  where ls.device_id = i.device_id;
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;

comment on function fleet.note_first_status(bigint[], timestamptz) is
  'Notes the status of devices that were never looked at, because the store had no transitions before, or that have no heartbeat '
  'any more. That is no transition. Returns how many. Called by fleet.mark_silent().';
