create or replace function fleet.silence_reason(p_device_id bigint, p_heard_at timestamptz) returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with beats as materialized (
    select row_number() over (order by b.ts desc) as nth, b.battery_pct, b.signal_dbm, b.next_in_s, b.stopping
    from fleet.beats_before(p_device_id, p_heard_at) b
  ),
  -- If none was stored, because its clock is wrong, there is still what last status has.
  newest as (
    select b.battery_pct, b.signal_dbm, b.next_in_s, b.stopping from beats b where b.nth = 1
    union all
    select ls.battery_pct, ls.signal_dbm, ls.next_in_s, ls.stopping
    from fleet.device_last_status ls
    where ls.device_id = p_device_id and not exists (select from beats) and ls.last_received_at <= p_heard_at
  )
  select coalesce(
    (
      select case
        when n.stopping is not null then n.stopping
        when n.next_in_s is not null then 'sleep'
        when n.battery_pct <= 5 and n.battery_pct < r.battery_pct then 'battery'
        when n.signal_dbm <= -100 and n.signal_dbm <= r.signal_dbm - 10 then 'signal'
      end
      from newest n
      cross join (
        -- A charging device has less behind it, not more.
        select (array_agg(b.battery_pct order by b.nth desc) filter (where b.battery_pct is not null))[1] as battery_pct,
          max(b.signal_dbm) as signal_dbm
        from beats b
      ) r
    ),
    'unknown'
  );
$$;

comment on function fleet.silence_reason(bigint, timestamptz) is
  'Why a device fell silent that was last heard from at this time, by what it had said: the word of its stopping; sleep (it said '
  'when it would report next, and did not); battery (at 5 % or less, and less than in the half hour before); signal (-100 dBm or '
  'weaker, and at least 10 dB weaker than in the half hour before); or unknown. fleet.note_transitions() looks first whether '
  'ingest was down and whether others fell silent with it. Example: select fleet.silence_reason(42, now());';
