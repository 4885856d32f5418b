create or replace function fleet.silence_reason(p_device_id bigint, p_heard_at timestamptz) returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_newest record;
  v_charge smallint;
  v_strongest smallint;
begin
  -- Nearly always last status has what the device said last, and nothing in it needs a look at the heartbeats before.
  select ls.battery_pct, ls.signal_dbm, ls.next_in_s, ls.stopping into v_newest
  from fleet.device_last_status ls
  where ls.device_id = p_device_id and ls.last_received_at <= p_heard_at;
  if not found then
    -- What it said before the gap that its newest heartbeat ended.
    select ls.gap_battery_pct as battery_pct, ls.gap_signal_dbm as signal_dbm, ls.gap_next_in_s as next_in_s,
      ls.gap_stopping as stopping
    into v_newest
    from fleet.device_last_status ls
    where ls.device_id = p_device_id and ls.gap_from = p_heard_at;
  end if;
  if not found then
    select b.battery_pct, b.signal_dbm, b.next_in_s, b.stopping into v_newest
    from fleet.beats_before(p_device_id, p_heard_at, 1) b;
  end if;
  if v_newest.stopping is not null then
    return v_newest.stopping;
  end if;
  if v_newest.next_in_s is not null then
    return 'sleep';
  end if;
  if v_newest.battery_pct <= 5 or v_newest.signal_dbm <= -100 then
    -- Of a device that is being charged, the oldest of these is not the fullest.
    select (array_agg(b.battery_pct order by b.ts) filter (where b.battery_pct is not null))[1], max(b.signal_dbm)
    into v_charge, v_strongest
    from fleet.beats_before(p_device_id, p_heard_at) b;
    if v_newest.battery_pct <= 5 and v_newest.battery_pct < v_charge then
      return 'battery';
    end if;
    if v_newest.signal_dbm <= -100 and v_newest.signal_dbm <= v_strongest - 10 then
      return 'signal';
    end if;
  end if;
  return 'unknown';
end
$$;

comment on function fleet.silence_reason(bigint, timestamptz) is
  'Why a device fell silent that was last heard from at this time, by what it had said: the word of its stopping; sleep (it said '
  'when it would report next, and did not); battery (at 5 % or less, and less than in the half hour before); signal (-100 dBm or '
  'weaker, and at least 10 dB weaker than in the half hour before); or unknown. fleet.note_transitions() looks first whether '
  'ingest was down and whether others fell silent with it. Example: select fleet.silence_reason(42, now());';
