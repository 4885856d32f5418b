create or replace function fleet.quarantine(
  p_batch json,
  p_received_at timestamptz,
  p_device_ids bigint[],
  p_tss timestamptz[],
  p_reasons text[],
  p_results text[]
) returns text[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_custom_plan  -- so that Citus asks only the shards of these devices
as $$
declare
  v_most integer := (select s.quarantine_per_device from fleet.settings s);
  v_ids bigint[] := array(
    select distinct u.device_id from unnest(p_device_ids, p_reasons) as u (device_id, reason) where u.reason is not null
  );
  v_counted_ids bigint[];
  v_counts bigint[];
  v_kept_ids bigint[];
  v_kept_tss timestamptz[];
  v_kept_reasons text[];
begin
  if cardinality(v_ids) > 0 then
    select array_agg(c.device_id), array_agg(c.n) into v_counted_ids, v_counts
    from (
      select q.device_id, count(*) as n from fleet.heartbeat_quarantine q where q.device_id = any (v_ids) group by q.device_id
    ) c;
    insert into fleet.heartbeat_quarantine (received_at, device_id, ts, reason, payload)
    select p_received_at, r.device_id, r.ts, r.reason, e.value::jsonb
    from (
      select u.device_id, u.ts, u.reason, min(u.item) as item,
        dense_rank() over (partition by u.device_id order by u.ts, u.reason) as nth
      from unnest(p_device_ids, p_tss, p_reasons) with ordinality as u (device_id, ts, reason, item)
      where u.reason is not null and u.device_id is not null
      group by u.device_id, u.ts, u.reason
    ) r
    join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
    left join unnest(v_counted_ids, v_counts) as c (device_id, n) on c.device_id = r.device_id
    where r.nth + coalesce(c.n, 0) <= v_most
    order by r.device_id, r.ts, r.reason
    on conflict do nothing;
    select array_agg(q.device_id), array_agg(q.ts), array_agg(q.reason) into v_kept_ids, v_kept_tss, v_kept_reasons
    from fleet.heartbeat_quarantine q
    where q.device_id = any (v_ids) and q.ts = any (p_tss);
  end if;
  return array(
    select coalesce(u.result, case when q.device_id is null then 'rejected' else 'quarantined' end)
    from unnest(p_device_ids, p_tss, p_reasons, p_results) with ordinality as u (device_id, ts, reason, result, item)
    left join unnest(v_kept_ids, v_kept_tss, v_kept_reasons) as q (device_id, ts, reason)
      on u.result is null and q.device_id = u.device_id and q.ts = u.ts and q.reason = u.reason
    order by u.item
  );
end
$$;

comment on function fleet.quarantine(json, timestamptz, bigint[], timestamptz[], text[], text[]) is
  'The form of fleet.quarantine() for a distributed store: quarantines the refused items of a batch, and returns the results with '
  'those of the refused items filled in.';
