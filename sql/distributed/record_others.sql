-- A plain store leaves rows that another batch is writing to that batch. Citus cannot skip locked rows on several nodes, so here one
-- batch may wait for another that has the same device; if two wait for each other, Citus ends one, and the server sends it again.
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
set plan_cache_mode = force_custom_plan  -- so that Citus asks only the shards of these devices
as $$
declare
  v_lag interval := (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s);
  v_ids bigint[] := array(select distinct u from unnest(p_device_ids) u where u is not null);
  v_known_ids bigint[];
  v_known_tss timestamptz[];
  v_refused bigint[];
  v_heard bigint[];
  v_announced record;
begin
  if cardinality(v_ids) = 0 then
    return;
  end if;
  select array_agg(l.device_id), array_agg(l.last_ts) into v_known_ids, v_known_tss
  from fleet.device_last_status l
  where l.device_id = any (v_ids) and (l.last_received_at is null or l.last_received_at <> p_received_at);
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
    join unnest(v_known_ids, v_known_tss) as l (device_id, last_ts) on l.device_id = u.device_id
  ) j;
  if v_heard is not null then
    perform fleet.record_arrivals(v_heard, array_fill(p_received_at, array[cardinality(v_heard)]));
  end if;
  -- What a device announces counts, even if another heartbeat has taken its bucket: it may be the last one before it stops.
  if p_batch::text ~ '"(next_in_s|stopping)"' then
    for v_announced in
      select distinct on (u.device_id) u.device_id, u.ts, r.next_in_s, r.stopping
      from unnest(p_device_ids, p_tss, p_results) with ordinality as u (device_id, ts, result, item)
      join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
      cross join lateral jsonb_to_record(e.value::jsonb) as r (next_in_s integer, stopping text)
      where u.result = 'duplicate' and u.device_id is not null and (r.next_in_s is not null or r.stopping is not null)
      order by u.device_id, u.ts desc
    loop
      update fleet.device_last_status ls
      set next_in_s = v_announced.next_in_s, stopping = v_announced.stopping
      where ls.device_id = v_announced.device_id and ls.last_ts <= v_announced.ts;
    end loop;
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
  'The form of fleet.record_others() for a distributed store: records in last status that devices were heard from whose heartbeats '
  'were duplicates or refused, and what those announced.';
