-- Everything was compared by the verification. What is left are the rows written since: those are compared while the table is
-- locked against writers, which takes one read of it, and nothing of the rows that are older.
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
    return format('%s was confirmed at %s', a.source, a.confirmed_at);
  end if;
  if a.state <> 'verified' then
    raise exception using
      errcode = 'FL002',
      message = format('%s is %s, not verified, and cannot be confirmed', a.source, a.state),
      hint = format('First: call fleet.verify_import(%L);', a.source);
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL422',
      message = format('a transaction that is %s would not see what is written before the lock', current_setting('transaction_isolation')),
      hint = format('In a transaction of its own: select fleet.confirm_import(%L);', a.source);
  end if;

  -- Making the trigger anew takes the lock that keeps writers out, which LOCK TABLE would give to an owner only.
  a.forwards := true;
  for v_try in 1..20 loop
    begin
      perform fleet.start_forwarding(a);
      exit;
    exception when lock_not_available then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('%s is in use: no moment without a writer was found', a.source),
          hint = format('Nothing has changed. See who writes: select * from pg_stat_activity where query ilike %L; then try again.', '%' || p_source::text || '%');
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;

  -- Of a bucket's rows one is kept, as fleet.verify_days() has it. The rows since may be many more than were written since: who
  -- writes for long, in any database of the cluster, holds back the transaction that they are counted from.
  execute format(
    $query$
      select coalesce(sum(b.rows), 0), coalesce(sum(b.rows) filter (where b.is_missing), 0),
        coalesce(sum(b.rows) filter (where b.is_changed and not b.is_kept), 0)
      from (
        select count(*) as rows, h.checksum is null as is_missing, bool_or(h.checksum = s.checksum) as is_kept,
          bool_or(h.ts = s.ts and h.received_at = s.received_at) as is_changed
        from (
          select b.device_id, b.ts, b.received_at, %1$s as checksum,
            date_bin('10 seconds', b.ts, timestamptz '2000-01-01 00:00:00+00') as bucket
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
        'of %s rows written to %s since it was verified, %s are not in the store and %s are there with other content', v_rows,
        a.source, v_missing, v_changed
      ),
      hint = format('Take them over and look again: call fleet.import_table(%1$L); call fleet.verify_import(%1$L);', a.source);
  end if;

  for v_try in 1..20 loop
    begin
      perform fleet.stop_forwarding(a);
      exit;
    exception when lock_not_available or deadlock_detected then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('%s is being read: its trigger could not be taken away', a.source),
          hint = format('Nothing has changed. Try again when the long reads have ended: select fleet.confirm_import(%L);', a.source);
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
    p_detail => format('%s, by %s', a.source, session_user)
  );
  return format(
    '%1$s is confirmed; %2$s rows that were written since it was verified were compared too. When you no longer need it, as its owner: drop table %1$s;',
    a.source, v_rows
  );
end
$$;

comment on function fleet.confirm_import(regclass) is
  'Ends the adoption of a verified table: compares what was written since, with writers kept out for that moment, and takes the trigger away. From then on there is no way back; the table is left for you to drop. Example: select fleet.confirm_import(''public.device_heartbeats'');';
