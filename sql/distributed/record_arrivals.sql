-- As an upsert, which Citus sends only to the nodes of these devices. An update that is joined with arrays goes to every shard.
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
  v_now timestamptz := now();
  v_bound timestamptz;
  v_lag interval;
  v_lags integer[];
  v_rows bigint;
begin
  select v_now + s.max_future, fleet.allowed_lag(s.offline_after, s.max_late) into v_bound, v_lag from fleet.settings s;
  v_lags := array(
    select ceil(extract(epoch from greatest(v_lag, 2 * d.heartbeat_interval)))::integer
    from unnest(p_device_ids) with ordinality u (device_id, nth)
    left join fleet.devices d on d.device_id = u.device_id
    order by u.nth
  );
  with written as (
    insert into fleet.device_last_status as ls (device_id, last_ts, last_received_at, is_silent, late_after_s, gap_from)
    -- ON CONFLICT sees no variables: late_after_s carries how far a clock may lag, gap_from how far one may be ahead.
    select b.device_id, b.ts, b.received_at, b.received_at < v_now - interval '2 minutes', b.lag, v_bound
    from unnest(p_device_ids, p_received_ats, p_tss, v_lags) as b (device_id, received_at, ts, lag)
    where b.device_id is not null
    order by b.device_id
    on conflict (device_id) do update
      set last_ts = case
          when ls.last_ts > excluded.gap_from then coalesce(excluded.last_ts, ls.last_ts)
          else greatest(ls.last_ts, excluded.last_ts)
        end,
        last_received_at = case
          when ls.last_received_at > excluded.gap_from then excluded.last_received_at
          else greatest(ls.last_received_at, excluded.last_received_at)
        end,
        status = case
          when excluded.last_ts is not null
            and excluded.last_received_at - greatest(ls.last_ts, excluded.last_ts) > excluded.late_after_s * interval '1 second'
            then 'clock_skewed'
          else ls.status
        end,
        is_silent = ls.is_silent and excluded.is_silent,
        gap_from = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.last_received_at
          else ls.gap_from
        end,
        gap_next_in_s = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.next_in_s
          else ls.gap_next_in_s
        end,
        gap_stopping = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.stopping
          else ls.gap_stopping
        end,
        gap_battery_pct = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.battery_pct
          else ls.gap_battery_pct
        end,
        gap_signal_dbm = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.signal_dbm
          else ls.gap_signal_dbm
        end
      where coalesce(ls.last_ts, '-infinity') < excluded.last_ts or ls.last_ts > excluded.gap_from and excluded.last_ts is not null
        or ls.last_received_at is null or ls.last_received_at < excluded.last_received_at or ls.last_received_at > excluded.gap_from
    -- What Citus counts without this includes the rows that it leaves as they are.
    returning device_id
  )
  select count(*) into v_rows from written w;
  return v_rows;
end
$$;

comment on function fleet.record_arrivals(bigint[], timestamptz[], timestamptz[]) is
  'The form of fleet.record_arrivals() for a distributed store: records when devices were heard from, without changing the values '
  'that they reported, and notes no transitions. Returns how many rows changed.';
