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
  c_chunk constant integer := 10000;
  v_since timestamptz := now() - p_window;
  v_bound timestamptz := now() + (select s.max_future from fleet.settings s);
  v_behind bigint[];
  v_chunk bigint[];
  v_beats fleet.device_heartbeats[];
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
  with newest as materialized (
    select d.device_id, h.ts, ls.last_ts,
      coalesce(ls.last_ts > v_bound or ls.last_received_at > v_bound, false) as is_ahead
    from fleet.devices d
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    left join lateral (
      select b.ts
      from fleet.device_heartbeats b
      where b.device_id = d.device_id and b.ts >= v_since and b.ts <= v_bound
      order by b.ts desc
      limit 1
    ) h on true
  ),
  behind as (
    select n.device_id
    from newest n
    where n.is_ahead or n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id <= coalesce(v_after, 0), n.device_id
    limit p_max_rows
  )
  select (select count(*) from newest), array_agg(b.device_id order by b.device_id),
    (
      select b.device_id from behind b order by b.device_id <= coalesce(v_after, 0) desc, b.device_id desc limit 1
    )
  into checked, v_behind, v_last
  from behind b;

  updated := 0;
  for v_first in 1..coalesce(cardinality(v_behind), 0) by c_chunk loop
    v_chunk := v_behind[v_first : v_first + c_chunk - 1];
    -- In the order in which ingest locks them. What is read afterwards includes what arrived until then.
    perform from fleet.device_last_status ls where ls.device_id = any (v_chunk) order by ls.device_id for update;
    select array_agg(
      case
        when h.received_at > v_bound then jsonb_populate_record(h.beat, jsonb_build_object('received_at', h.ts))
        else h.beat
      end
    )
    into v_beats
    from unnest(v_chunk) c (device_id)
    left join fleet.device_last_status ls on ls.device_id = c.device_id
    cross join lateral (
      select b as beat, b.ts, b.received_at
      from fleet.device_heartbeats b
      where b.device_id = c.device_id and b.ts <= v_bound
        and (b.ts >= v_since or ls.last_ts > v_bound or ls.last_received_at > v_bound)
      order by b.ts desc
      limit 1
    ) h;
    updated := updated + fleet.upsert_last_status(v_beats, true) + (
      -- Where the upsert left the values alone, the times may still be wrong.
      select fleet.record_arrivals(array_agg(b.device_id), array_agg(b.received_at), array_agg(b.ts)) from unnest(v_beats) b
    );
    -- Everything that is known of these devices was written while the clock of Postgres ran ahead.
    update fleet.device_last_status ls
    set last_ts = null, last_received_at = q.received_at, status = case when q.received_at is not null then ls.status end
    from unnest(v_chunk) u (device_id)
    cross join lateral (
      select max(k.received_at) as received_at
      from fleet.heartbeat_quarantine k
      where k.device_id = u.device_id and k.received_at <= v_bound
    ) q
    where ls.device_id = u.device_id and (ls.last_ts > v_bound or ls.last_received_at > v_bound);
    get diagnostics v_rows = row_count;
    updated := updated + v_rows;
    -- This may take minutes. fleet.mark_silent() removes the marks that are not needed.
    update fleet.device_last_status ls
    set is_silent = true
    where ls.device_id = any (v_chunk) and not ls.is_silent;
  end loop;
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
