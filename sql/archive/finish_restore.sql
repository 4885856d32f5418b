create or replace function fleet.finish_restore(p_partition text, p_worker text, p_rows_sha256 text default null) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_got record;
  v_left_out text;
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := to_regclass(format('fleet.%I', fleet.restoring_name(p_partition)));
  if v_partition.state = 'restored' then
    return;
  end if;
  if v_table is null or v_partition.state <> 'dropped' or not exists (
    select from fleet.restore_items i
    where i.partition_name = p_partition and i.state = 'running' and i.lease_owner = p_worker
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; %s has not begun to restore it', p_partition, v_partition.state, p_worker),
      hint = 'Call fleet.begin_restore() first.';
  end if;

  -- The archiver may insert until here. Its rights are revoked before the comparison, so exactly the compared rows are attached.
  execute format('revoke all on %s from fleet_archiver', v_table);
  execute format('alter table %s disable row level security', v_table);
  if v_partition.rows_sha256 is null then
    select c.row_count, c.min_ts, c.max_ts, format('content checksum %s', c.content_checksum) as found,
      format('content checksum %s', v_partition.content_checksum) as expected
    into v_got
    from fleet.content_checksum(v_table, v_partition.columns, v_partition.checksum_version) c;
  else
    -- The archiver hashed the table as CSV. Where Postgres itself hashed the rows when they were archived, it does so again.
    select c.row_count, c.min_ts, c.max_ts,
      format('rows_sha256 %s, row hash %s', coalesce(p_rows_sha256, 'not computed'), c.rows_hash) as found,
      format('rows_sha256 %s, row hash %s', v_partition.rows_sha256, coalesce(v_partition.rows_hash, c.rows_hash)) as expected
    into v_got
    from fleet.count_rows(v_table) c;
  end if;
  if (v_got.row_count, v_got.found, v_got.min_ts, v_got.max_ts) is distinct from (
    v_partition.row_count, v_got.expected, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the restored rows of %s differ from what was archived; the table is not attached', p_partition),
      detail = format(
        'rows %s, restored %s; %s, restored %s', v_partition.row_count, v_got.row_count, v_got.expected, v_got.found
      ),
      hint = case
        when p_rows_sha256 = v_partition.rows_sha256 then
          'The rows have the SHA-256 of the archive, but not the hash that Postgres computed. See "Bring '
          'archived days back" in RUNBOOK.md.'
        else 'Check the archive: npm run archive -- verify'
      end;
  end if;

  v_left_out := fleet.reshape_restored(v_table, v_partition.columns, v_partition.columns_at);

  execute format('alter table %s rename to %I', v_table, p_partition);
  update fleet.hb_partitions set relid = v_table, settled_at = null where partition_name = p_partition;
  perform fleet.bind_range(p_partition);
  perform partman.inherit_template_properties('fleet.device_heartbeats', 'fleet', p_partition);
  -- The rows lie in the order of the archive. The key has proven that there is no duplicate.
  if (
    select s.settle and v_partition.range_end <= now() - least(s.max_late, s.retention) - interval '1 hour' from fleet.settings s
  ) then
    perform fleet.close_partition(p_partition);
  end if;
  execute format(
    'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
    v_table, v_partition.range_start, v_partition.range_end
  );
  execute format('analyze %s', v_table);

  update fleet.hb_partitions
  set state = 'restored', step = null, restored_at = now(), bytes_size = pg_total_relation_size(v_table)
  where partition_name = p_partition;
  update fleet.restore_items
  set state = 'done', finished_at = now(), lease_owner = null, lease_until = null, last_error = null,
    left_out = v_left_out
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  perform fleet.record_event(
    'partition.restore', p_partition, v_got.row_count, p_detail => 'left out, and kept in the archive: ' || v_left_out
  );
end
$$;

comment on function fleet.finish_restore(text, text, text) is
  'Compares the restored rows with the archive, by the archive''s own columns. Then changes the table to today''s columns, '
  'indexes it, attaches it, and sets state restored. It is settled if no heartbeat can come for it.';
