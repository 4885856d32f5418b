  , written as (
    insert into fleet.device_last_status as ls (
      device_id, last_ts, last_received_at, status, is_silent, noted_status,
      battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra, next_in_s, stopping
    )
    select n.device_id, n.stored_ts, n.received_at,
      case
        -- The first comparison spares most batches the read of the settings.
        when n.ts < n.received_at - interval '1 minute'
          and n.received_at - n.ts > (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s)
          or n.stored_ts is null and fleet.is_ahead(n.ts, n.received_at) then 'clock_skewed'
        when n.unity_running is false then 'unity_down'
        else 'ok'
      end,
      -- The value rarely changes, so the update stays HOT.
      n.received_at < now() - interval '2 minutes',
      'new',
      n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip, n.extra, n.next_in_s, n.stopping
    from newest n
    order by n.device_id  -- otherwise concurrent batches of the same devices deadlock
    on conflict (device_id) do update
      set last_ts = coalesce(excluded.last_ts, ls.last_ts),
        last_received_at = case
          when ls.last_received_at > excluded.last_received_at and not fleet.is_ahead(ls.last_received_at)
            then ls.last_received_at
          else excluded.last_received_at
        end,
        status = excluded.status,
        is_silent = excluded.is_silent,
        gap_from = case
          when excluded.last_received_at - ls.last_received_at > greatest(ls.late_after_s, ls.next_in_s) * interval '1 second'
            then ls.last_received_at
        end,
        gap_next_in_s = ls.next_in_s,
        gap_stopping = ls.stopping,
        gap_battery_pct = ls.battery_pct,
        gap_signal_dbm = ls.signal_dbm,
        battery_pct = excluded.battery_pct,
        network_type = excluded.network_type,
        unity_running = excluded.unity_running,
        signal_dbm = excluded.signal_dbm,
        agent_version = excluded.agent_version,
        next_in_s = excluded.next_in_s,
        stopping = excluded.stopping,
        ip = excluded.ip,
        extra = excluded.extra
      -- A late arrival must not rewind a device. What lies in the future was written while the clock of Postgres ran ahead.
      -- fleet.is_ahead() is called only when the other comparisons are false.
      where case
        when excluded.last_ts is null then ls.last_received_at is null or ls.last_received_at < excluded.last_received_at
          or fleet.is_ahead(ls.last_received_at)
        else ls.last_ts is null or ls.last_ts < excluded.last_ts
          or fleet.is_ahead(ls.last_ts)
          or ls.last_ts = excluded.last_ts and fleet.is_ahead(ls.last_received_at)
      end
    -- What may be a transition.
    returning case
      when ls.noted_status <> case ls.status when 'ok' then 'online' else ls.status end or ls.gap_from is not null
        then ls.device_id
    end as changed_id
  )
  select count(*), array_agg(w.changed_id) filter (where w.changed_id is not null) into v_rows, v_changed from written w;
  if v_changed is not null then
    perform fleet.note_transitions(v_changed);
  end if;
