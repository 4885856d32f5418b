create or replace function fleet.accept_archive(p_partition text, p_reason text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_found record;
  v_since timestamptz := clock_timestamp();
begin
  if p_reason is null or btrim(p_reason) = '' then
    raise exception using
      errcode = 'FL422',
      message = format(
        'partition %s is not dropped: no reason was given for keeping only its archive', coalesce(p_partition, 'null')
      ),
      hint = format(
        'Give a reason, for example: select fleet.accept_archive(%L, ''changed by mistake, case 4711'');', p_partition
      );
  end if;
  -- This takes many seconds for a large day, so it happens before the partition's row is locked.
  select * into v_found
  from fleet.hb_partitions p
  cross join lateral fleet.compare_with_archive(p.partition_name)
  where p.partition_name = p_partition and p.state in ('detached', 'archive_failed', 'archived');

  v_partition := fleet.get_partition(p_partition);
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and is not dropped', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if v_found.table_oid is null or v_partition.state not in ('detached', 'archive_failed', 'archived') then
    raise exception using
      errcode = 'FL002',
      message = format(
        'partition %s is %s, and there is no retired table to compare with its archive', p_partition, v_partition.state
      ),
      hint = format('See select * from fleet.partition_health where partition_name = %L;', p_partition);
  end if;
  if v_partition.proven_at is null or v_partition.checksum_sha256 is null or v_partition.archive_url is null then
    raise exception using
      errcode = 'FL001',
      message = format('partition %s is %s and has no proven archive; it is not dropped', p_partition, v_partition.state),
      hint = format('Run select fleet.archive_partition(%L); and wait for state archived.', p_partition);
  end if;
  if v_partition.confirmed_at is null and (select s.proofs_needed from fleet.settings s) > 1 then
    raise exception using
      errcode = 'FL001',
      message = format(
        'the archive of partition %s is not confirmed by a second login; the partition is not dropped', p_partition
      ),
      hint = 'In a shell with VERIFIER_DATABASE_URL set, run: npm run archive -- confirm. '
        'It confirms only partitions in state archived.';
  end if;
  if not v_found.differs and v_partition.state = 'archived' then
    return format('partition %s has the same rows as its archive; there is nothing to accept', p_partition);
  end if;

  perform fleet.record_event(
    'partition.archive.accept', p_partition, v_found.row_count,
    p_detail => format(
      'by %s: %s. Dropped: %s rows (%s). Archive: %s rows (%s; %s), %s',
      (fleet.current_actor()).actor, p_reason, v_found.row_count, v_found.in_table, v_partition.row_count, v_found.in_archive,
      fleet.rows_proof(v_partition.rows_sha256, v_partition.content_checksum), v_partition.archive_url
    )
  );
  perform fleet.audit(
    'partition.archive_accepted', 'partition:' || p_partition,
    jsonb_build_object('rows', v_found.row_count), jsonb_build_object('rows', v_partition.row_count, 'reason', p_reason)
  );
  update fleet.hb_partitions
  set state = 'archived', step = 'proven', attempts = 0, next_attempt_at = null
  where partition_name = p_partition;
  perform fleet.drop_retired(p_partition, v_found.table_oid, v_since);
  return format('partition %s is dropped; its archive is kept as the correct copy', p_partition);
end
$$;

comment on function fleet.accept_archive(text, text) is
  'Drops a retired table that differs from its proven archive, when the archive is the correct copy. fleet.events records who '
  'did this, why, and what was dropped. Run npm run archive -- verify first. If the table is the correct copy instead, call '
  'fleet.retry_archive(). '
  'Example: select fleet.accept_archive(''device_heartbeats_p2026_08_15'', ''changed by mistake'');';
