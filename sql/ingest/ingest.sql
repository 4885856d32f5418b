create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select u.item::integer, coalesce(u.result, 'stored'), u.reason, u.ts
  from fleet.ingest_batch(p_batch, p_received_at) b
  cross join lateral unnest(b.results, b.reasons, b.tss) with ordinality as u (result, reason, ts, item);
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement. The batch is a JSON array of objects with device_id, ts and the other columns of '
  'fleet.device_heartbeats except received_at. Answers each item in order: stored, duplicate (same device and 10-second bucket), '
  'quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). '
  'Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
