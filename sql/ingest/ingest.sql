-- The server calls fleet.ingest_batch(). This is for people, whose heartbeats are recorded as theirs.
create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch record;
begin
  select b.results, b.reasons, b.tss into v_batch from fleet.ingest_batch(p_batch, p_received_at) b;
  if pg_has_role(session_user, 'fleet_dba', 'member') and not pg_has_role(session_user, 'fleet_server', 'member') then
    perform fleet.audit('heartbeats.ingested', 'heartbeats:' || r.items, p_after => r.results)
    from (
      select sum(c.items) as items, jsonb_object_agg(c.result, c.items) as results
      from (
        select coalesce(u.result, 'stored') as result, count(*) as items
        from unnest(v_batch.results, v_batch.tss) as u (result, ts)
        group by 1
      ) c
    ) r
    where r.items > 0;
  end if;
  return query
    select u.item::integer, coalesce(u.result, 'stored'), u.reason, u.ts
    from unnest(v_batch.results, v_batch.reasons, v_batch.tss) with ordinality as u (result, reason, ts, item);
end
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement. The batch is a JSON array of objects with device_id, ts and the other columns of '
  'fleet.device_heartbeats except received_at. Answers each item in order: stored, duplicate (same device and 10-second bucket), '
  'quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). '
  'Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
