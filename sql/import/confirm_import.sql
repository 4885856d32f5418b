-- The verification compared everything that was written before it. The rows written since are compared here, while the table is
-- locked against writers; that reads the table once, and compares no older row again.
create or replace function fleet.confirm_import(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  c_blocks constant integer := 1024;
  a fleet.imports := fleet.get_import(p_source);
  v_rows bigint;
  v_missing bigint;
  v_changed bigint;
begin
  if a.state = 'confirmed' then
    return format('the import of %s was confirmed at %s', a.source, a.confirmed_at);
  end if;
  if a.state <> 'verified' then
    raise exception using
      errcode = 'FL002',
      message = format('the import of %s is %s, not verified, and cannot be confirmed', a.source, a.state),
      hint = format('Verify it first: call fleet.verify_import(%L);', a.source);
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL422',
      message = format(
        'a %s transaction cannot see rows that are written just before the lock on %s', current_setting('transaction_isolation'),
        a.source
      ),
      hint = format('Run this in a read committed transaction of its own: select fleet.confirm_import(%L);', a.source);
  end if;

  -- Replacing the trigger takes the lock that keeps writers out. LOCK TABLE would need more rights than SELECT and TRIGGER.
  a.forwards := true;
  for v_try in 1..20 loop
    begin
      perform fleet.start_forwarding(a);
      exit;
    exception when lock_not_available then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('%s is in use: 20 attempts to lock it against writers failed', a.source),
          hint = format(
            'Nothing has changed. See who writes: select * from pg_stat_activity where query ilike %L; then try again.',
            '%' || p_source::text || '%'
          );
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;

  -- One row of each bucket is kept, as in fleet.verify_days(). More rows may be compared than were written since, because a long
  -- transaction in any database of the cluster holds back the transaction ID from which they are counted.
  execute format(
    $query$
      select coalesce(sum(b.rows), 0), coalesce(sum(b.rows) filter (where b.is_missing), 0),
        coalesce(sum(b.rows) filter (where b.is_changed and not b.is_kept), 0)
      from (
        select count(*) as rows, h.checksum is null as is_missing, bool_or(h.checksum = s.checksum) as is_kept,
          bool_or(h.ts = s.ts and h.received_at = s.received_at) as is_changed
        from (
          select b.device_id, b.ts, b.received_at, %1$s as checksum,
            fleet.heartbeat_bucket(b.ts) as bucket
          from (
            select (r.beat).*
            from generate_series(0, $2, $3) as g (block)
            cross join lateral fleet.read_source($1, g.block, g.block + $3, ($1).verified_xid::xid) r
            where r.reason is null
          ) b
        ) s
        left join lateral (
          select b.ts, b.received_at, %1$s as checksum
          from fleet.device_heartbeats b
          where b.device_id = s.device_id and b.ts >= s.bucket and b.ts < s.bucket + interval '10 seconds'
        ) h on true
        group by s.device_id, s.bucket, h.checksum
      ) b
    $query$,
    fleet.checksum_expression('fleet.device_heartbeats')
  )
  into v_rows, v_missing, v_changed
  using a, pg_relation_size(p_source) / current_setting('block_size')::bigint, c_blocks;
  if v_missing + v_changed > 0 then
    raise exception using
      errcode = 'FL010',
      message = format(
        'of %s rows written to %s since it was verified, %s are not in the store and %s are there with different content', v_rows,
        a.source, v_missing, v_changed
      ),
      hint = format('Import them and verify again: call fleet.import_table(%1$L); call fleet.verify_import(%1$L);', a.source);
  end if;

  for v_try in 1..20 loop
    begin
      perform fleet.stop_forwarding(a);
      exit;
    exception when lock_not_available or deadlock_detected then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('%s is being read: 20 attempts to drop its trigger failed', a.source),
          hint = format(
            'Nothing has changed. Try again when the long queries have ended: select fleet.confirm_import(%L);', a.source
          );
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;
  delete from fleet.import_ranges r where r.source = a.source;
  update fleet.imports f
  set state = 'confirmed', confirmed_at = clock_timestamp(), updated_at = clock_timestamp()
  where f.source = a.source;
  perform fleet.record_event(
    'import.confirmed', p_rows => (select sum(d.rows_kept)::bigint from fleet.import_days d where d.source = a.source),
    p_detail => format('%s, by %s', a.source, (fleet.current_actor()).actor)
  );
  perform fleet.audit('import.confirmed', 'import:' || a.source);
  return format(
    'the import of %1$s is confirmed; %2$s rows that were written since the verification were compared too. '
      'When you no longer need the table, run as its owner: drop table %1$s;',
    a.source, v_rows
  );
end
$$;

comment on function fleet.confirm_import(regclass) is
  'Confirms the import of a verified table: compares the rows written since the verification, with writers locked out for that '
  'moment, and removes the trigger. After that the import can no longer be abandoned. The table itself stays until you drop it. '
  'Example: select fleet.confirm_import(''public.device_heartbeats'');';
