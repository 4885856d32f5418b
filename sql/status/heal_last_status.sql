-- Starts from the devices, with one index probe for each device and partition. A scan would read all heartbeats of the day.
create or replace function fleet.heal_last_status(
  p_window interval,
  p_max_rows integer,
  out checked bigint,
  out updated bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz := now() - p_window;
  v_after bigint;
  v_last bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('fleet.reconcile', 0)) then
    raise exception using
      errcode = 'FL003',
      message = 'another session is reconciling last status',
      hint = 'Wait until it ends. If it is stuck: select * from fleet.force_unlock(''reconcile'');';
  end if;
  -- A run that reached its limit left the devices after the last one to the next run. So devices that fall behind again and again
  -- cannot keep others from their turn.
  select position into v_after from fleet.cursors where cursor_name = 'reconcile';
  with newest as materialized (
    select d.device_id, h.ts, h.received_at, h.battery_pct, h.network_type, h.unity_running, h.signal_dbm, h.agent_version,
      h.ip, h.extra, ls.last_ts
    from fleet.devices d
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    left join lateral (
      select b.*
      from fleet.device_heartbeats b
      where b.device_id = d.device_id and b.ts >= v_since
      order by b.ts desc
      limit 1
    ) h on true
  ),
  behind as (
    select n.*
    from newest n
    where n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id <= coalesce(v_after, 0), n.device_id
    limit p_max_rows
  ),
  healed as (
    insert into fleet.device_last_status as ls (
      device_id, last_ts, last_received_at, battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra,
      status, is_silent
    )
    select n.device_id, n.ts, n.received_at, n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version,
      n.ip, n.extra, case when n.unity_running is false then 'unity_down' else 'ok' end,
      true  -- this may take minutes; fleet.mark_silent() removes the marks that are not needed
    from behind n
    order by n.device_id  -- the order in which ingest locks them
    on conflict (device_id) do update
      set last_ts = excluded.last_ts,
        last_received_at = excluded.last_received_at,
        battery_pct = excluded.battery_pct,
        network_type = excluded.network_type,
        unity_running = excluded.unity_running,
        signal_dbm = excluded.signal_dbm,
        agent_version = excluded.agent_version,
        ip = excluded.ip,
        extra = excluded.extra,
        status = excluded.status,
        is_silent = excluded.is_silent
      where ls.last_ts is null or ls.last_ts < excluded.last_ts
    returning ls.device_id
  )
  select (select count(*) from newest), (select count(*) from healed),
    (
      select b.device_id from behind b order by b.device_id <= coalesce(v_after, 0) desc, b.device_id desc limit 1
    )
  into checked, updated, v_last;
  insert into fleet.cursors as c (cursor_name, position)
  values ('reconcile', case when updated < p_max_rows then 0 else v_last end)
  on conflict (cursor_name) do update
    set position = excluded.position
    where c.position <> excluded.position;
end
$$;

comment on function fleet.heal_last_status(interval, integer) is
  'Moves last status forward to the newest stored heartbeat within a window, for at most p_max_rows devices. Used by '
  'fleet.reconcile() and fleet.backfill_last_status().';
