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
  v_bound timestamptz := now() + (select s.max_future from fleet.settings s);
  v_beats fleet.device_heartbeats[];
  v_unheard bigint[];
  v_rows bigint;
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
  with ahead as materialized (  -- of a time when the database's clock ran ahead
    select ls.device_id
    from fleet.device_last_status ls
    where ls.last_ts > v_bound or ls.last_received_at > v_bound
  ),
  newest as materialized (
    select d.device_id, h.beat, h.ts, ls.last_ts, false as is_ahead
    from fleet.devices d
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    left join lateral (
      select b as beat, b.ts
      from fleet.device_heartbeats b
      where b.device_id = d.device_id and b.ts >= v_since and b.ts <= v_bound
      order by b.ts desc
      limit 1
    ) h on true
    where not exists (select from ahead a where a.device_id = d.device_id)
    union all
    select a.device_id,
      case
        when h.received_at > v_bound then jsonb_populate_record(h.beat, jsonb_build_object('received_at', h.ts))
        else h.beat
      end,
      h.ts, null, true
    from ahead a
    left join lateral (
      select b as beat, b.ts, b.received_at
      from fleet.device_heartbeats b
      where b.device_id = a.device_id and b.ts <= v_bound
      order by b.ts desc
      limit 1
    ) h on true
  ),
  behind as (
    select n.device_id, n.ts, n.beat
    from newest n
    where n.is_ahead or n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id <= coalesce(v_after, 0), n.device_id
    limit p_max_rows
  )
  select (select count(*) from newest),
    array_agg(b.beat) filter (where b.ts is not null),
    array_agg(b.device_id) filter (where b.ts is null),
    (
      select b.device_id from behind b order by b.device_id <= coalesce(v_after, 0) desc, b.device_id desc limit 1
    )
  into checked, v_beats, v_unheard, v_last
  from behind b;

  updated := fleet.upsert_last_status(v_beats, true) + (
    -- Where the upsert left the values alone, the times may still be wrong.
    select fleet.record_arrivals(array_agg(b.device_id), array_agg(b.received_at), array_agg(b.ts)) from unnest(v_beats) b
  );
  -- All that is known of these devices is of the time when the clock ran ahead.
  update fleet.device_last_status ls
  set last_ts = null, last_received_at = q.received_at, status = case when q.received_at is null then 'ok' else ls.status end
  from unnest(v_unheard) u (device_id)
  cross join lateral (
    select max(k.received_at) as received_at
    from fleet.heartbeat_quarantine k
    where k.device_id = u.device_id and k.received_at <= v_bound
  ) q
  where ls.device_id = u.device_id;
  get diagnostics v_rows = row_count;
  updated := updated + v_rows;
  -- This may take minutes. fleet.mark_silent() removes the marks that are not needed.
  update fleet.device_last_status ls
  set is_silent = true
  where ls.device_id in (select b.device_id from unnest(v_beats) b union all select unnest(v_unheard)) and not ls.is_silent;
  insert into fleet.cursors as c (cursor_name, position)
  values ('reconcile', case when updated < p_max_rows then 0 else v_last end)
  on conflict (cursor_name) do update
    set position = excluded.position
    where c.position <> excluded.position;
end
$$;

comment on function fleet.heal_last_status(interval, integer) is
  'Moves last status forward to the newest stored heartbeat within a window, and back where it is in the future because the '
  'database''s clock ran ahead, for at most p_max_rows devices. Used by fleet.reconcile() and fleet.backfill_last_status().';
