-- Locks no rows: the writes compare with what is there.
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
  v_ahead bigint[];
  v_ahead_ats timestamptz[];
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
  -- A device that was enrolled while its row could not be written.
  v_chunk := array(select d.device_id from fleet.devices d where d.device_id not in (select ls.device_id from fleet.device_last_status ls));
  insert into fleet.device_last_status (device_id, is_silent)
  select u, true from unnest(v_chunk) u order by 1
  on conflict do nothing;
  select count(*) into checked from fleet.devices;
  select array_agg(b.device_id order by b.nth), (array_agg(b.device_id order by b.nth desc))[1]
  into v_behind, v_last
  from (
    select n.device_id, row_number() over (order by n.device_id <= coalesce(v_after, 0), n.device_id) as nth
    from (
      select ls.device_id
      from fleet.device_last_status ls
      join fleet.devices d using (device_id)
      left join lateral (
        select b.ts
        from fleet.device_heartbeats b
        where b.device_id = ls.device_id and b.ts >= v_since and b.ts <= v_bound
        order by b.ts desc
        limit 1
      ) h on true
      where ls.last_ts > v_bound or ls.last_received_at > v_bound or h.ts is not null and (ls.last_ts is null or ls.last_ts < h.ts)
    ) n
    order by nth
    limit p_max_rows
  ) b;

  updated := 0;
  for v_first in 1..coalesce(cardinality(v_behind), 0) by c_chunk loop
    v_chunk := v_behind[v_first : v_first + c_chunk - 1];
    v_beats := array(
      select jsonb_populate_record(
        null::fleet.device_heartbeats,
        h.beat || case when h.received_at > v_bound then jsonb_build_object('received_at', h.ts) else '{}' end
      )
      from (
        select g.beat, g.ts, g.received_at
        from fleet.device_last_status ls
        cross join lateral (
          select to_jsonb(b) as beat, b.ts, b.received_at
          from fleet.device_heartbeats b
          where b.device_id = ls.device_id and b.ts <= v_bound
            and (b.ts >= v_since or ls.last_ts > v_bound or ls.last_received_at > v_bound)
          order by b.ts desc
          limit 1
        ) g
        where ls.device_id = any (v_chunk)
      ) h
    );
    updated := updated + fleet.upsert_last_status(v_beats, true) + (
      -- Where the upsert left the values alone, the times may still be wrong.
      select fleet.record_arrivals(array_agg(b.device_id), array_agg(b.received_at), array_agg(b.ts)) from unnest(v_beats) b
    );
    -- Everything that is known of these devices was written while the clock of Postgres ran ahead.
    select array_agg(ls.device_id), array_agg(q.received_at) into v_ahead, v_ahead_ats
    from fleet.device_last_status ls
    left join lateral (
      select max(k.received_at) as received_at
      from fleet.heartbeat_quarantine k
      where k.device_id = ls.device_id and k.received_at <= v_bound
      group by k.device_id
    ) q on true
    where ls.device_id = any (v_chunk) and (ls.last_ts > v_bound or ls.last_received_at > v_bound);
    insert into fleet.device_last_status as ls (device_id, last_received_at)
    select u.device_id, u.received_at from unnest(v_ahead, v_ahead_ats) as u (device_id, received_at) order by u.device_id
    on conflict (device_id) do update
      set last_ts = null, last_received_at = excluded.last_received_at,
        status = case when excluded.last_received_at is not null then ls.status end;
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
  'The form of fleet.heal_last_status() for a distributed store: moves last status forward to the newest stored heartbeat within a '
  'window, and back where it is in the future, for at most p_max_rows devices.';
