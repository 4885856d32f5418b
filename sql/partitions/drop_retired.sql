create or replace function fleet.drop_retired(p_partition text, p_table oid, p_since timestamptz) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_left oid;
begin
  if p_table is not null then
    execute format('drop table %s', p_table::regclass);
  end if;
  v_partition := fleet.get_partition(p_partition);
  -- A table that still has the name is not the one that was compared.
  v_left := fleet.table_of(v_partition);
  if v_left is not null then
    raise exception using
      errcode = 'FL002',
      message = format('table %s appeared while partition %s was being dropped', v_left::regclass, p_partition),
      hint = format('Look at that table, then try again: select fleet.drop_partition(%L);', p_partition);
  end if;

  update fleet.hb_partitions
  set state = 'dropped', relid = null, dropped_at = now(), lease_owner = null, lease_until = null, bytes_size = 0,
    last_error = null
  where partition_name = p_partition;
  -- It was the only copy online, so this is recorded whoever did it, the archiver too.
  perform fleet.audit(
    'partition.dropped', 'partition:' || p_partition,
    jsonb_build_object('rows', v_partition.row_count, 'table', case when p_table is null then 'was gone' else 'dropped' end),
    jsonb_build_object('archive_url', v_partition.archive_url, 'sha256', v_partition.checksum_sha256)
  );
  if p_table is null then
    perform fleet.record_event(
      'partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(p_since),
      'the table was already gone; nothing was compared'
    );
  else
    perform fleet.increment_counter('hb_partition_dropped_total');
    perform fleet.record_event('partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(p_since));
  end if;
end
$$;

comment on function fleet.drop_retired(text, oid, timestamptz) is
  'Drops the table of a partition, which its callers have compared with its archive, and records that. Called by '
  'fleet.drop_partition() and fleet.accept_archive().';
