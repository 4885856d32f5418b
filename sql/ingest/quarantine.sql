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
as $$
declare
  v_results text[];
begin
  insert into fleet.heartbeat_quarantine (received_at, device_id, ts, reason, payload)
  select p_received_at, r.device_id, r.ts, r.reason, e.value::jsonb
  from (
    select u.device_id, u.ts, u.reason, min(u.item) as item,
      dense_rank() over (partition by u.device_id order by u.ts, u.reason) as nth
    from unnest(p_device_ids, p_tss, p_reasons) with ordinality as u (device_id, ts, reason, item)
    where u.reason is not null
    group by u.device_id, u.ts, u.reason
  ) r
  join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
  cross join fleet.settings s
  where r.nth + (select count(*) from fleet.heartbeat_quarantine q where q.device_id = r.device_id) <= s.quarantine_per_device
  order by r.device_id, r.ts, r.reason
  on conflict do nothing;

  select array_agg(
    coalesce(u.result, case when q.device_id is null then 'rejected' else 'quarantined' end)
    order by u.item
  )
  into v_results
  from unnest(p_device_ids, p_tss, p_reasons, p_results) with ordinality as u (device_id, ts, reason, result, item)
  left join fleet.heartbeat_quarantine q
    on u.result is null and q.device_id = u.device_id and q.ts = u.ts and q.reason = u.reason;

  return v_results;
end
$$;

comment on function fleet.quarantine(json, timestamptz, bigint[], timestamptz[], text[], text[]) is
  'Quarantines the refused items of a batch. Returns the results, with those of the refused items filled in: quarantined, or '
  'rejected if the quarantine of the device is full. Called by fleet.ingest_batch().';
