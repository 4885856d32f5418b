-- Fixes everything in a restored dump that had a meaning only in the cluster from which it was taken.
create or replace function fleet.relink_tables() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_catalog text := left(fleet_guard.seal(0), -1);  -- read once, not for each row
  v_partition fleet.hb_partitions;
  v_import fleet.imports;
  v_table oid;
  v_found integer := 0;
  v_lost text[] := array[]::text[];
begin
  for v_partition in
    select p.*
    from fleet.hb_partitions p
    where p.relid is not null and p.relid_seal is distinct from v_catalog || p.relid
    order by p.range_start
    for update
  loop
    v_table := coalesce(fleet.table_of(v_partition), fleet.find_renamed(v_partition));
    update fleet.hb_partitions p
    set relid = v_table, relid_seal = v_catalog || v_table,
      -- A transaction ID of this cluster.
      cold_xid = case when p.cold_xid is not null then pg_current_xact_id()::xid end,
      last_error = case when v_table is null then 'the table is gone' else p.last_error end
    where p.partition_name = v_partition.partition_name;
    if v_table is null then
      v_lost := v_lost || v_partition.partition_name;
    else
      v_found := v_found + 1;
    end if;
  end loop;

  for v_import in
    select a.*
    from fleet.imports a
    where a.relid_seal is distinct from v_catalog || a.relid
    for update
  loop
    v_table := coalesce(fleet.source_table(v_import), 0);
    if v_table <> v_import.relid
      and to_regproc(format('fleet.%I', 'forward_' || v_import.relid)) is not null
      and to_regproc(format('fleet.%I', 'forward_' || v_table)) is null then
      execute format('alter function fleet.%I() rename to %I', 'forward_' || v_import.relid, 'forward_' || v_table);
    end if;
    update fleet.imports a
    set relid = v_table, relid_seal = v_catalog || v_table,
      -- The rows are in other blocks of the table now, so it is read from the start.
      filenode = 0,
      -- Rows that were written after the verification were found by transaction IDs, which are different here.
      state = case a.state when 'verified' then 'moved' else a.state end,
      verified_xid = null, verified_at = null
    where a.source = v_import.source;
    v_found := v_found + 1;
  end loop;

  if v_found > 0 or cardinality(v_lost) > 0 then
    perform fleet.grant_maintain();
    perform fleet.record_event(
      'store.relinked', p_rows => v_found, p_is_ok => cardinality(v_lost) = 0,
      p_detail => concat_ws('; ', 'tables found by name', 'no table found for ' || nullif(array_to_string(v_lost, ', '), ''))
    );
  end if;
  return v_found;
end
$$;

comment on function fleet.relink_tables() is
  'After a dump was restored, finds the table of each partition and each import by name and records its new oid; returns how '
  'many. Changes nothing in any other store. Run at the start of fleet.maintain() and fleet.nightly(), and by '
  'fleet.sync_partitions().';
