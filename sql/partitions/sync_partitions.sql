create or replace function fleet.sync_partitions() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_new text;
  v_count integer := 0;
begin
  perform fleet.relink_tables();
  for v_new in
    insert into fleet.hb_partitions as p (partition_name, relid, range_start, range_end)
    select a.partition_name, a.relid, a.range_start, a.range_end
    from fleet.attached_partitions() a
    left join fleet.hb_partitions known using (partition_name)
    where (
        known.partition_name is null
        or known.relid is distinct from a.relid
        or known.state not in ('active', 'restored')
      )
      -- A table that was renamed by hand is not new; fleet.check() asks to restore its name.
      and not exists (
        select from fleet.hb_partitions o where o.relid = a.relid and o.partition_name <> a.partition_name
      )
    order by a.range_start
    -- A known name means that the table came back: restored from a dump, or attached by hand.
    on conflict (partition_name) do update
      set relid = excluded.relid,
        range_start = excluded.range_start,
        range_end = excluded.range_end,
        state = case when p.state = 'restored' then 'restored' else 'active' end,
        is_proven_empty = false,
        step = null, lease_owner = null, lease_until = null, next_attempt_at = null
    returning p.partition_name
  loop
    v_count := v_count + 1;
    perform fleet.record_event('partition.create', v_new);
  end loop;
  if v_count > 0 then
    perform fleet.increment_counter('partitions_created_total', v_count);
  end if;

  -- A partition that was detached by hand is archived like other retired ones. fleet.check() reports one whose table is gone.
  update fleet.hb_partitions p
  set relid = c.oid,
    state = case when c.oid is null then p.state else 'detached' end,
    detached_at = case when c.oid is null then p.detached_at else now() end,
    last_error = case when c.oid is null then 'the table is gone' else p.last_error end
  from fleet.hb_partitions q
  left join pg_class c on c.oid = q.relid and c.relkind = 'r' and not c.relispartition
  where q.partition_name = p.partition_name
    and p.state in ('active', 'restored')
    and p.relid is not null
    and not exists (
      select from pg_inherits i where i.inhrelid = p.relid and i.inhparent = to_regclass('fleet.device_heartbeats')
    );

  -- Only the catalog says whether a partition takes rows: it may have come back from a dump or from elsewhere. One that takes
  -- rows but has no key stays noted as settled until fleet.maintain() opens it. Ingest calls this, and must wait for no index.
  update fleet.hb_partitions p
  set settled_at = case when p.settled_at is null then now() end
  where p.state in ('active', 'restored') and p.relid is not null
    and (p.settled_at is not null) <> fleet.is_settled(p.relid)
    and (p.settled_at is null or fleet.dedupe_index(p.relid) is not null);

  return v_count;
end
$$;

comment on function fleet.sync_partitions() is
  'Brings fleet.hb_partitions in line with the catalog; returns how many partitions were new to it.';
