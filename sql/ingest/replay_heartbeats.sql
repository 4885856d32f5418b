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
  for v_partition in
    select p.partition_name
    from fleet.hb_partitions p
    cross join fleet.settings s
    where p.settled_at is not null and p.state in ('active', 'restored')
      and exists (
        select from fleet.heartbeat_quarantine q
        where q.ts >= greatest(p.range_start, p_from) and q.ts < least(p.range_end, p_to)
          and (p_device_id is null or q.device_id = p_device_id)
          and q.ts >= q.received_at - least(s.max_late, s.retention) and q.ts <= q.received_at + s.max_future
      )
    order by p.range_start
  loop
    perform fleet.unsettle_table(v_partition);
  end loop;
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
      and exists (
        select from fleet.hb_partitions p
        where p.range_start <= q.ts and p.range_end > q.ts and p.state in ('active', 'restored') and p.relid is not null
      )
    group by q.received_at
    order by q.received_at
  loop
    with answered as (
      select coalesce(i.result, 'stored') as result, k.device_id, k.ts, k.reason
      from fleet.ingest_batch(v_batch.items, v_batch.received_at) b
      cross join lateral unnest(b.results, b.tss) with ordinality as i (result, ts, item)
      join unnest(v_batch.device_ids, v_batch.tss, v_batch.reasons) with ordinality as k (device_id, ts, reason, item)
        on k.item = i.item
    ),
    gone as (
      delete from fleet.heartbeat_quarantine q
      using answered a
      where a.result in ('stored', 'duplicate') and q.device_id = a.device_id and q.ts = a.ts and q.reason = a.reason
    )
    select count(*) filter (where a.result = 'stored'), count(*) filter (where a.result = 'duplicate')
    into v_stored, v_duplicate
    from answered a;
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
