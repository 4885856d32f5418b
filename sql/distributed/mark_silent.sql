-- Citus locks no rows of several nodes: the devices are read first, and the update looks again.
create or replace procedure fleet.mark_silent(p_max_rows integer default 50000, p_now timestamptz default now())
language plpgsql
as $$
declare
  c_batch constant integer := 5000;
  c_noted constant integer := 1000;
  v_base interval;
  v_changes bigint;
  v_rows integer;
  v_left integer := p_max_rows;
  v_ids bigint[];
  v_heard_before timestamptz;
begin
  perform fleet.end_overdue_readers();
  commit;
  select greatest(least(s.offline_after, interval '10 minutes'), interval '5 minutes'), m.changes
  into v_base, v_changes
  from fleet.settings s
  cross join fleet.silence_marks m;
  v_heard_before := p_now - v_base * 0.75;
  loop
    -- In device_id order, as in ingest. A batch is a short transaction, because a device that comes back waits for it.
    perform set_config('lock_timeout', '1s', true);
    v_ids := array(
      select l.device_id
      from fleet.device_last_status l
      join fleet.devices d using (device_id)
      where not l.is_silent and l.last_received_at < p_now - v_base * 0.75
        and l.last_received_at < p_now - 1.5 * d.heartbeat_interval
      order by l.device_id
      limit least(c_batch, v_left)
    );
    -- Those that were heard from since stay.
    update fleet.device_last_status ls
    set is_silent = true
    where ls.device_id = any (v_ids) and ls.last_received_at < v_heard_before;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  -- At the limit the marks are incomplete, and reads continue without them. That suits a fleet that is mostly silent.
  if v_left > 0 then
    update fleet.silence_marks m
    set marked_at = p_now, base = v_base
    where m.changes = v_changes;
  end if;
  commit;

  -- Remove marks that no heartbeat removed, because they were set as a precaution.
  loop
    perform set_config('lock_timeout', '1s', true);
    v_ids := array(
      select l.device_id
      from fleet.device_last_status l
      where l.is_silent and (l.last_received_at is null or l.last_received_at >= p_now - interval '2 minutes')
      order by l.device_id
      limit least(c_batch, greatest(v_left, 0))
    );
    update fleet.device_last_status ls
    set is_silent = false
    where ls.device_id = any (v_ids);
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  commit;

  perform fleet.watch_silence(p_now);
  commit;

  -- After the marks and the look at ingest, which explain why devices went offline.
  while fleet.note_changed_devices(c_noted, p_now) = c_noted loop
    commit;
  end loop;
  commit;
  while fleet.note_gaps(c_noted) = c_noted loop
    commit;
  end loop;
  commit;
  v_ids := fleet.devices_to_note(p_now);
  perform fleet.find_incidents(v_ids, p_now);
  commit;
  for v_first in 1..coalesce(cardinality(v_ids), 0) by c_noted loop
    perform set_config('lock_timeout', '1s', true);
    perform fleet.note_first_status(v_ids[v_first : v_first + c_noted - 1], p_now);
    perform fleet.note_transitions(v_ids[v_first : v_first + c_noted - 1], p_now);
    commit;
  end loop;
  perform fleet.end_incidents(p_now);
  perform fleet.remind_webhooks(p_now);
  perform fleet.wake_notifier();
  commit;

  perform fleet.count_fleet();
  commit;

  perform fleet.sample_fleet();
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'The form of fleet.mark_silent() for a distributed store. It also notes what ingest notes in a plain store: that devices are back, '
  'report something else, or were silent between two heartbeats. Run every minute by pg_cron. Example: call fleet.mark_silent();';
