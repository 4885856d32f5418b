-- `on conflict do nothing` without the dedupe key stores duplicates and says nothing. So a CHECK that no row can pass comes first:
-- it holds for every role, COPY and replication, and no setting disables it. NOT VALID: it is not checked for the rows that are
-- there, and the planner does not conclude from it that the table is empty.
create or replace function fleet.close_partition(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table oid;
  v_key oid;
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := fleet.table_of(v_partition);
  v_key := fleet.dedupe_index(v_table);
  if v_key is null or position(fleet.dedupe_key() in pg_get_indexdef(v_key)) = 0 then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s has no valid dedupe key, so it may have duplicates, and is not settled', p_partition),
      hint = 'See select * from fleet.check_partitions() where check_name = ''partition_indexes'';';
  end if;
  execute format('alter table %s add constraint device_heartbeats_settled check (false) not valid', v_table::regclass);
  execute format(
    'comment on constraint device_heartbeats_settled on %s is %L', v_table::regclass,
    'Refuses new rows, because the dedupe key was dropped. To write: select fleet.unsettle_partition(name);'
  );
  execute format('drop index %s', v_key::regclass);
  update fleet.hb_partitions
  set settled_at = clock_timestamp()
  where partition_name = p_partition;
end
$$;

comment on function fleet.close_partition(text) is
  'Closes a past partition: from then on it refuses every new row, and its dedupe key, which only inserts need, is dropped. '
  'fleet.unsettle_partition() opens it.';
