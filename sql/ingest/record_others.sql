create or replace function fleet.record_others(
  p_batch json,
  p_received_at timestamptz,
  p_device_ids bigint[],
  p_tss timestamptz[],
  p_results text[]
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_lag interval := (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s);
  v_refused bigint[];
  v_heard bigint[];
begin
  select array_agg(j.device_id) filter (where j.says_more), array_agg(j.device_id) filter (where not j.says_more)
  into v_refused, v_heard
  from (
    select u.device_id,
      -- What is refused because it is old says nothing new of a device that sent a heartbeat on time a moment ago.
      u.is_refused and (l.last_ts is null or l.last_ts < greatest(u.ts, p_received_at - v_lag)) as says_more
    from (
      select k.device_id, bool_and(k.result in ('quarantined', 'rejected')) as is_refused, max(k.ts) as ts
      from unnest(p_device_ids, p_tss, p_results) as k (device_id, ts, result)
      group by k.device_id
    ) u
    join (
      -- Does not wait: a row that another batch is writing is left to that batch. So batches do not deadlock.
      select l.device_id, l.last_ts
      from fleet.device_last_status l
      where l.device_id = any (p_device_ids)
        -- Most rows were written by the trigger a moment ago.
        and (l.last_received_at is null or l.last_received_at <> p_received_at)
      for update skip locked
    ) l using (device_id)
  ) j;
  if v_heard is not null then
    perform fleet.record_arrivals(v_heard, array_fill(p_received_at, array[cardinality(v_heard)]));
  end if;
  -- What a device announces counts, even if another heartbeat has taken its bucket: it may be the last one before it stops.
  if p_batch::text ~ '"(next_in_s|stopping)"' then
    with announced as (
      select distinct on (u.device_id) u.device_id, u.ts, r.next_in_s, r.stopping
      from unnest(p_device_ids, p_tss, p_results) with ordinality as u (device_id, ts, result, item)
      join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
      cross join lateral jsonb_populate_record(null::fleet.device_last_status, fleet.reported_values(e.value::jsonb)) r
      where u.result = 'duplicate' and u.device_id is not null and (r.next_in_s is not null or r.stopping is not null)
      order by u.device_id, u.ts desc
    ),
    free as (
      select l.device_id
      from fleet.device_last_status l
      join announced a using (device_id)
      where l.last_ts <= a.ts
      for update of l skip locked
    )
    update fleet.device_last_status ls
    set next_in_s = a.next_in_s, stopping = a.stopping
    from announced a
    join free f using (device_id)
    where ls.device_id = a.device_id;
  end if;
  if v_refused is not null then
    perform fleet.upsert_last_status(array_agg(b.beat), false)
    from (
      select distinct on (u.device_id)
        jsonb_populate_record(
          null::fleet.device_heartbeats,
          fleet.reported_values(e.value::jsonb)
          || jsonb_build_object('device_id', u.device_id, 'ts', u.ts, 'received_at', p_received_at)
        ) as beat
      from unnest(p_device_ids, p_tss) with ordinality as u (device_id, ts, item)
      join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
      where u.device_id = any (v_refused)
      order by u.device_id, u.ts desc
    ) b;
  end if;
end
$$;

comment on function fleet.record_others(json, timestamptz, bigint[], timestamptz[], text[]) is
  'Records in last status what the trigger on the heartbeats does not: that devices were heard from whose heartbeats were '
  'duplicates or refused. If all that a device sent was refused, last status takes the values of the newest of it, unless it has a '
  'newer heartbeat that was on time. Also takes next_in_s and stopping of newer duplicates. Called by fleet.ingest_batch().';
