create or replace function fleet.record_arrivals(
  p_device_ids bigint[],
  p_received_ats timestamptz[],
  p_tss timestamptz[] default '{}'
) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_bound timestamptz;
  v_lag interval;
  v_rows bigint;
  v_changed bigint[];
begin
  select now() + s.max_future, fleet.allowed_lag(s.offline_after, s.max_late) into v_bound, v_lag from fleet.settings s;
  with written as (
  update fleet.device_last_status ls
  set last_ts = case when ls.last_ts > v_bound then coalesce(b.ts, ls.last_ts) else greatest(ls.last_ts, b.ts) end,
    last_received_at = case
      when ls.last_received_at > v_bound then b.received_at
      else greatest(ls.last_received_at, b.received_at)
    end,
    -- A duplicate may be a retry of a heartbeat that was on time.
    status = case
      when b.ts is not null and b.received_at - greatest(ls.last_ts, b.ts) > v_lag
        and b.received_at - greatest(ls.last_ts, b.ts) > 2 * coalesce(
          (select d.heartbeat_interval from fleet.devices d where d.device_id = ls.device_id), interval '0'
        ) then 'clock_skewed'
      else ls.status
    end,
    is_silent = ls.is_silent and b.received_at < now() - interval '2 minutes',
    gap_from = case
      when b.received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
        then ls.last_received_at
    end,
    gap_next_in_s = ls.next_in_s,
    gap_stopping = ls.stopping,
    gap_battery_pct = ls.battery_pct,
    gap_signal_dbm = ls.signal_dbm
  from unnest(p_device_ids, p_received_ats, p_tss) as b (device_id, received_at, ts)
  where ls.device_id = b.device_id
    and (
      coalesce(ls.last_ts, '-infinity') < b.ts or ls.last_ts > v_bound and b.ts is not null
      or ls.last_received_at is null or ls.last_received_at < b.received_at or ls.last_received_at > v_bound
    )
  returning case
    when ls.noted_status <> case ls.status when 'ok' then 'online' else ls.status end or ls.gap_from is not null
      then ls.device_id
  end as changed_id
  )
  select count(*), array_agg(w.changed_id) filter (where w.changed_id is not null) into v_rows, v_changed from written w;
  if v_changed is not null then
    perform fleet.note_transitions(v_changed);
  end if;
  return v_rows;
end
$$;

comment on function fleet.record_arrivals(bigint[], timestamptz[], timestamptz[]) is
  'Records when devices were heard from, without changing the values that they reported: for heartbeats that are older than the '
  'newest one, and for duplicates, which are passed without a ts. Devices that send only older heartbeats for '
  'settings.offline_after and for two of their intervals become clock_skewed. '
  'Returns how many rows changed.';
