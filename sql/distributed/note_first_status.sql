create or replace function fleet.note_first_status(p_device_ids bigint[], p_now timestamptz) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_offline_after interval := (select s.offline_after from fleet.settings s);
  v_ids bigint[];
  v_firsts boolean[];
  v_seconds integer[];
  v_statuses text[];
  v_sinces timestamptz[];
  v_rows integer;
begin
  perform fleet.not_in_future(p_now);
  select array_agg(i.device_id), array_agg(i.is_first), array_agg(i.late_after_s),
    array_agg(case when i.is_first then i.status else i.noted_status end),
    array_agg(case when not i.is_first then i.noted_since when i.status in ('late', 'offline') then p_now else i.last_received_at end)
  into v_ids, v_firsts, v_seconds, v_statuses, v_sinces
  from (
    select f.*,
      case
        when f.revoked_at is not null then 'revoked'
        when f.derived = 'online' and f.said = 'unity_down' then 'unity_down'
        else f.derived
      end as status
    from (
      select e.*,
        fleet.derive_status(
          e.said = 'clock_skewed', e.last_received_at, e.expected, v_offline_after, fleet.excused(e.next_in_s, e.expected), p_now
        ) as derived
      from (
        select l.device_id, l.noted_status, l.noted_since, l.last_received_at, l.status as said, l.next_in_s, d.revoked_at,
          l.noted_status is null or l.last_received_at is null as is_first,
          floor(extract(epoch from fleet.late_after(d.heartbeat_interval)))::integer as late_after_s,
          fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now) as expected
        from fleet.device_last_status l
        join fleet.devices d using (device_id)
        left join fleet.cohorts c on c.cohort = d.cohort
        where l.device_id = any (p_device_ids)
          -- fleet.reconcile() forgets what was heard while the clock ran ahead.
          and (l.noted_status is null or l.late_after_s is null or l.last_received_at is null and l.noted_status not in ('new', 'revoked'))
      ) e
    ) f
  ) i;
  if v_ids is null then
    return 0;
  end if;
  insert into fleet.device_last_status as ls (device_id, noted_status, noted_since, late_after_s)
  select u.device_id, u.status, u.since, u.late_after_s
  from unnest(v_ids, v_statuses, v_sinces, v_seconds) as u (device_id, status, since, late_after_s)
  order by u.device_id
  on conflict (device_id) do update
    set noted_status = excluded.noted_status, noted_since = excluded.noted_since, late_after_s = excluded.late_after_s;
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;

comment on function fleet.note_first_status(bigint[], timestamptz) is
  'The form of fleet.note_first_status() for a distributed store: notes the status of devices that were never looked at, or that have '
  'no heartbeat any more. Returns how many.';
