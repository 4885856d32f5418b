-- pg_partman retires by age alone. Older partitions that must stay attached (held, restored and late days) are detached before it
-- and attached again after it, in the same transaction, under the lock on the parent that the detach takes anyway. Because of
-- their CHECK constraints attaching them only changes the catalog.
create or replace function fleet.retire_partition(p_partition text, p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_kept record;
  v_table oid;
  v_aside oid[];
  v_starts timestamptz[];
  v_ends timestamptz[];
  v_rows bigint;
  v_bytes bigint;
  v_source text;
  v_since timestamptz := clock_timestamp();
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'active' then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s, not active, and cannot be retired', p_partition, v_partition.state),
      hint = case v_partition.state
        when 'restored' then format('Release it first: select fleet.release_partition(%L);', p_partition)
        else 'It is already retired; see select * from fleet.partition_health.'
      end;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and cannot be retired', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  v_source := (select min(h.source) from fleet.import_holds() h where h.since < v_partition.range_end);
  if v_source is not null then
    raise exception using
      errcode = 'FL002',
      message = format('rows of %s are being imported into partition %s, which cannot be retired yet', v_source, p_partition),
      hint = format('See select * from fleet.import_progress; then: select fleet.confirm_import(%L);', v_source);
  end if;
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s is active, but its table is missing; there is nothing to retire', p_partition),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if v_partition.range_end > p_now then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s ends at %s and may still receive heartbeats', p_partition, v_partition.range_end),
      hint = 'Only a partition whose range is over can be retired.';
  end if;

  -- Count first, detach last, so that the parent is locked only for the catalog change.
  execute format('select count(*) from fleet.%I', p_partition) into v_rows;
  v_bytes := pg_total_relation_size(v_table);

  -- Lock the parent before looking, so that no restore attaches an older day in between, which pg_partman would retire, too.
  -- LOCK TABLE needs the right to write, which the owner does not have; this statement takes the same lock and changes nothing,
  -- because row-level security is always on there (access/readers.policies.sql).
  alter table only fleet.device_heartbeats enable row level security;
  -- From now on the columns of the partition stay the same.
  perform fleet.note_columns();
  select array_agg(a.relid), array_agg(a.range_start), array_agg(a.range_end) into v_aside, v_starts, v_ends
  from fleet.attached_partitions() a
  where a.range_start < v_partition.range_start;
  for v_kept in select a.relid from unnest(v_aside) as a (relid) loop
    execute format('alter table fleet.device_heartbeats detach partition %s', v_kept.relid::regclass);
  end loop;

  perform partman.drop_partition_time(
    p_parent_table => 'fleet.device_heartbeats',
    p_retention => interval '0',
    p_keep_table => true,
    p_keep_index => true,
    p_retention_schema => 'fleet_detached',
    -- pg_partman believes that every partition is as long as it now makes them, which is wrong after a change of the cadence.
    p_reference_timestamp => v_partition.range_start
      + (select c.partition_interval::interval from partman.part_config c where c.parent_table = 'fleet.device_heartbeats')
      + interval '1 microsecond'
  );

  for v_kept in
    select a.relid, a.range_start, a.range_end
    from unnest(v_aside, v_starts, v_ends) as a (relid, range_start, range_end)
  loop
    execute format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
      v_kept.relid::regclass, v_kept.range_start, v_kept.range_end
    );
  end loop;

  if to_regclass(format('fleet_detached.%I', p_partition)) is distinct from v_table::regclass then
    raise exception using
      errcode = 'FL002',
      message = format('pg_partman did not retire partition %s', p_partition),
      hint = 'Another maintenance run of pg_partman may hold its lock; try again in a moment.';
  end if;
  perform fleet.make_read_only(p_partition);

  update fleet.hb_partitions
  set state = 'detached', step = null, counted = null, detached_at = clock_timestamp(), bytes_size = v_bytes,
    -- If the day was archived before, the count of that archive stays until the next export.
    row_count = case when archive_url is null then v_rows else row_count end,
    attempts = 0, next_attempt_at = now(), last_error = null
  where partition_name = p_partition;
  perform fleet.record_event('partition.detach', p_partition, v_rows, fleet.elapsed_ms(v_since));
  return v_rows;
end
$$;

comment on function fleet.retire_partition(text, timestamptz) is
  'Counts a past partition, has pg_partman detach it into fleet_detached, and leaves it to the archiver. Returns its row count. '
  'Run by fleet.nightly() and fleet.archive_partition().';
