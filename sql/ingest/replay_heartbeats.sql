-- Each batch goes through fleet.ingest_batch() again, with the time at which it arrived. Heartbeats that are acceptable now (their
-- partition exists, or max_late was raised) are stored. The rest stays.
create or replace function fleet.replay_heartbeats(
  p_from timestamptz default '-infinity',
  p_to timestamptz default 'infinity',
  p_device_id bigint default null,
  out stored bigint,
  out duplicate bigint,
  out remaining bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  v_partition text;
  v_batch record;
  v_stored bigint;
  v_duplicate bigint;
  v_settings fleet.settings;
  v_days timestamptz[];
  v_online tstzmultirange;
  v_ids bigint[];
  v_tss timestamptz[];
  v_reasons text[];
begin
  if p_from is null or p_to is null or p_from > p_to then
    raise exception using
      errcode = 'FL422',
      message = format('cannot replay from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give the first and the last ts, in order: select * from fleet.replay_quarantine(current_date - 3, current_date);';
  end if;
  stored := 0;
  duplicate := 0;
  remaining := 0;
  select * into strict v_settings from fleet.settings;
  v_days := array(
    select distinct date_trunc('day', q.ts)
    from fleet.heartbeat_quarantine q
    where q.ts >= p_from and q.ts < p_to
      and (p_device_id is null or q.device_id = p_device_id)
      and q.ts >= q.received_at - least(v_settings.max_late, v_settings.retention) and q.ts <= q.received_at + v_settings.max_future
  );
  for v_partition in
    select p.partition_name
    from fleet.hb_partitions p
    where p.settled_at is not null and p.state in ('active', 'restored')
      and exists (select from unnest(v_days) d where d >= p.range_start and d < p.range_end)
    order by p.range_start
  loop
    perform fleet.unsettle_table(v_partition);
  end loop;
  v_online := (
    select range_agg(tstzrange(p.range_start, p.range_end))
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.relid is not null
  );
  for v_batch in
    select q.received_at,
      -- The ts that was judged: if the payload has none, the time of arrival.
      json_agg(
        q.payload || jsonb_build_object('device_id', q.device_id, 'ts', q.ts) order by q.device_id, q.ts, q.reason
      ) as items,
      array_agg(q.device_id order by q.device_id, q.ts, q.reason) as device_ids,
      array_agg(q.ts order by q.device_id, q.ts, q.reason) as tss,
      array_agg(q.reason order by q.device_id, q.ts, q.reason) as reasons
    from fleet.heartbeat_quarantine q
    where q.ts >= p_from and q.ts < p_to
      and (p_device_id is null or q.device_id = p_device_id)
      and v_online @> q.ts
    group by q.received_at
    order by q.received_at
  loop
    select count(*) filter (where a.result = 'stored'), count(*) filter (where a.result = 'duplicate'),
      array_agg(a.device_id) filter (where a.is_in), array_agg(a.ts) filter (where a.is_in),
      array_agg(a.reason) filter (where a.is_in)
    into v_stored, v_duplicate, v_ids, v_tss, v_reasons
    from (
      select r.result, k.device_id, k.ts, k.reason, r.result in ('stored', 'duplicate') as is_in
      from fleet.ingest_batch(v_batch.items, v_batch.received_at) b
      cross join lateral unnest(b.results, b.tss) with ordinality as i (result, ts, item)
      cross join lateral (select coalesce(i.result, 'stored') as result) r
      join unnest(v_batch.device_ids, v_batch.tss, v_batch.reasons) with ordinality as k (device_id, ts, reason, item)
        on k.item = i.item
    ) a;
    delete from fleet.heartbeat_quarantine q
    using unnest(v_ids, v_tss, v_reasons) as a (device_id, ts, reason)
    where q.device_id = a.device_id and q.ts = a.ts and q.reason = a.reason;
    stored := stored + v_stored;
    duplicate := duplicate + v_duplicate;
  end loop;

  select count(*) into remaining
  from fleet.heartbeat_quarantine q
  where q.ts >= p_from and q.ts < p_to and (p_device_id is null or q.device_id = p_device_id);
  perform fleet.record_event(
    'quarantine.replay', p_rows => stored, p_detail => format('%s duplicates, %s remaining', duplicate, remaining)
  );
end
$$;

comment on function fleet.replay_heartbeats(timestamptz, timestamptz, bigint) is
  'Does what fleet.replay_quarantine() says, which also records who asked for it. Called directly by fleet.maintain().';
