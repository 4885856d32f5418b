    , written as (
      insert into fleet.device_last_status as ls (
        device_id, last_ts, last_received_at, status, is_silent, noted_status,
        battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra, next_in_s, stopping,
        -- Only to carry the bound into ON CONFLICT, which sees no variables. Devices that are enrolled have a row.
        gap_from
      )
      select n.device_id, n.stored_ts, n.received_at,
        case
          when n.received_at - n.ts > v_lag or n.stored_ts is null and n.ts > n.received_at + (v_bound - v_now) then 'clock_skewed'
          when n.unity_running is false then 'unity_down'
          else 'ok'
        end,
        n.received_at < v_now - interval '2 minutes',
        'new',
        n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip, n.extra, n.next_in_s, n.stopping,
        v_bound
      from newest n
      order by n.device_id
      on conflict (device_id) do update
        set last_ts = coalesce(excluded.last_ts, ls.last_ts),
          last_received_at = case
            when ls.last_received_at > excluded.last_received_at and ls.last_received_at <= excluded.gap_from then ls.last_received_at
            else excluded.last_received_at
          end,
          status = excluded.status,
          is_silent = excluded.is_silent,
          -- A gap stays until fleet.note_heard() has noted it.
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
          end,
          battery_pct = excluded.battery_pct,
          network_type = excluded.network_type,
          unity_running = excluded.unity_running,
          signal_dbm = excluded.signal_dbm,
          agent_version = excluded.agent_version,
          next_in_s = excluded.next_in_s,
          stopping = excluded.stopping,
          ip = excluded.ip,
          extra = excluded.extra
        where case
          when excluded.last_ts is null then ls.last_received_at is null or ls.last_received_at < excluded.last_received_at
            or ls.last_received_at > excluded.gap_from
          else ls.last_ts is null or ls.last_ts < excluded.last_ts
            or ls.last_ts > excluded.gap_from
            or ls.last_ts = excluded.last_ts and ls.last_received_at > excluded.gap_from
        end
      -- What Citus counts without this includes the rows that it leaves as they are.
      returning device_id
    )
    select count(*) into v_rows from written w;
