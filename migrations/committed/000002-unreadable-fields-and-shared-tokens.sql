--! Previous: sha1:e74e38cc82d13f19baefa9bc1d99124b00b9a3ee
--! Hash: sha1:e88eb57945f5ced7fea2b114a11729667ea1b9e0
--! Message: unreadable fields and shared tokens

-- Values that cannot be read, and devices that share a token.

create table if not exists fleet.device_unreadable_fields (
  device_id bigint not null,
  field text not null,
  times bigint not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  example text not null,
  constraint device_unreadable_fields_pkey primary key (device_id, field)
);
comment on table fleet.device_unreadable_fields is
  'Fields of heartbeats whose value could not be read, by device. Read it with fleet.unreadable_fields.';
comment on column fleet.device_unreadable_fields.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_unreadable_fields.field is
  'The field that was left out. ts, device_id or body: the whole heartbeat was refused because of it.';
comment on column fleet.device_unreadable_fields.times is 'How often.';
comment on column fleet.device_unreadable_fields.first_at is 'When it was first reported.';
comment on column fleet.device_unreadable_fields.last_at is 'When it was last reported.';
comment on column fleet.device_unreadable_fields.example is 'The value that was sent last, as JSON, cut to 64 characters.';
create index if not exists device_unreadable_fields_last_at_idx on fleet.device_unreadable_fields (last_at);
comment on index fleet.device_unreadable_fields_last_at_idx is 'For fleet.check() and for pruning by age.';

create index if not exists device_availability_daily_excess_idx on fleet.device_availability_daily (day, device_id)
  where beats > expected * 1.5 + 10;
comment on index fleet.device_availability_daily_excess_idx is
  'The few devices of a day that sent far more than expected, for fleet.check_devices().';

-- Functions, procedures, views

--! Included archive/compare_with_archive.sql
-- Call it before you lock the partition's row: the checksum of a large day takes many seconds, and the archiver has to be able to
-- renew its lease in that row.
create or replace function fleet.compare_with_archive(p_partition text)
returns table (table_oid oid, row_count bigint, content_checksum numeric, differs boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_partition fleet.hb_partitions;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL002',
      message = format(
        'this transaction is %s and would not see rows that were written since it began', current_setting('transaction_isolation')
      ),
      hint = 'Call it in a read committed transaction of its own.';
  end if;
  perform fleet.relink_tables();  -- so that a renamed table does not count as gone
  select * into v_partition from fleet.hb_partitions p where p.partition_name = p_partition;
  table_oid := fleet.table_of(v_partition);
  if table_oid is null then
    return;
  end if;
  -- LOCK TABLE requires the right to write, which nobody has here. This statement changes nothing. It blocks writers, but not
  -- readers, until the end of the transaction.
  execute format('alter table %s disable trigger user', table_oid::regclass);
  if v_partition.rows_hash is not null then
    execute format('select count(*) from only %s', table_oid::regclass) into row_count;
    if row_count = v_partition.row_count and fleet.rows_hash(table_oid) = v_partition.rows_hash then
      content_checksum := v_partition.content_checksum;
      differs := false;
      return next;
      return;
    end if;
  end if;
  -- If there is no hash, or it differs, the slow comparison decides: after a dump and restore the same rows may hash differently.
  -- Without an archive there is no version either; any will do then.
  select c.row_count, c.content_checksum into row_count, content_checksum
  from fleet.content_checksum(table_oid, v_partition.columns, v_partition.checksum_version) c;
  -- A partition that was proven to be empty has no archive.
  differs := (row_count, content_checksum)
    is distinct from (coalesce(v_partition.row_count, 0), coalesce(v_partition.content_checksum, 0));
  return next;
end
$$;

comment on function fleet.compare_with_archive(text) is
  'Compares the rows of a retired table with the count and checksum of its archive, and blocks writers to the table until the '
  'end of the transaction. Returns no row if there is no table.';
--! EndIncluded archive/compare_with_archive.sql
--! Included ingest/heartbeat_bucket.sql
-- No SET clause, and a body that is parsed at creation, so that it is inlined and the index of the bucket is used. The index of
-- the template has the same expression written out, because a new definition would not change the index.
create or replace function fleet.heartbeat_bucket(p_ts timestamptz) returns timestamptz
language sql
immutable
parallel safe
return date_bin('10 seconds', p_ts, timestamptz '2000-01-01 00:00:00+00');

comment on function fleet.heartbeat_bucket(timestamptz) is
  'The start of the 10 seconds of which only the first heartbeat of a device is stored. '
  'Example: select fleet.heartbeat_bucket(now());';
--! EndIncluded ingest/heartbeat_bucket.sql
--! Included import/missing_heartbeats.sql
create or replace function fleet.missing_heartbeats(a fleet.imports, p_from timestamptz, p_to timestamptz)
returns setof fleet.device_heartbeats
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with given as materialized (
    select (r.beat).device_id, fleet.heartbeat_bucket((r.beat).ts) as bucket
    from fleet.import_ranges g
    cross join lateral fleet.read_source(a, g.first_block, g.last_block) r
    where g.source = a.source and g.first_ts < p_to and g.last_ts >= p_from and r.reason is null
  )
  select h.*
  from fleet.device_heartbeats h
  where h.ts >= p_from and h.ts < p_to
    and h.received_at >= a.started_at
    and not exists (
      select from given g
      where g.device_id = h.device_id and g.bucket = fleet.heartbeat_bucket(h.ts)
    );
$$;

comment on function fleet.missing_heartbeats(fleet.imports, timestamptz, timestamptz) is
  'The heartbeats of a time range that the store has received since the import of a table began and for whose device and '
  '10-second bucket the table has no row.';
--! EndIncluded import/missing_heartbeats.sql
--! Included import/confirm_import.sql
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
    p_detail => format('%s, by %s', a.source, session_user)
  );
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
--! EndIncluded import/confirm_import.sql
--! Included import/verify_days.sql
create or replace function fleet.verify_days(a fleet.imports, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set enable_nestloop = off  -- the planner cannot guess how many rows there are
as $$
declare
  v_first date;
  v_last date;
  v_rows bigint;
  v_bad bigint;
begin
  select min(w.day), max(w.day), sum(w.rows_found) into v_first, v_last, v_rows
  from (
    select d.day, d.rows_found, sum(d.rows_found) over (order by d.day) - d.rows_found as rows_before
    from fleet.import_days d
    where d.source = a.source and d.rows_found > 0 and d.checked_at is null
  ) w
  where w.rows_before < p_batch_rows;

  if v_first is not null then
    -- One snapshot: a row that the trigger forwards is visible on both sides or on neither.
    execute format(
      $query$
        with given as (
          select r.beat
          from fleet.import_ranges g
          cross join lateral fleet.read_source($1, g.first_block, g.last_block) r
          where g.source = ($1).source and g.first_ts < $3 and g.last_ts >= $2
            and r.reason is null and (r.beat).ts >= $2 and (r.beat).ts < $3
        ),
        source as materialized (
          select b.device_id, fleet.heartbeat_bucket(b.ts) as bucket, b.ts, b.received_at,
            %1$s as checksum
          from (select (g.beat).* from given g) b
        ),
        store as materialized (
          select b.device_id, fleet.heartbeat_bucket(b.ts) as bucket, b.ts, b.received_at,
            %1$s as checksum
          from fleet.device_heartbeats b
          where b.ts >= $2 and b.ts < $3
        ),
        buckets as (
          select s.bucket::date as day, count(*) as rows, h.checksum as store_checksum,
            coalesce(max(s.checksum) filter (where s.checksum = h.checksum), min(s.checksum)) as source_checksum,
            case
              when h.checksum is null then 'missing'
              when bool_or(s.checksum = h.checksum) then 'kept'
              when bool_or(s.ts = h.ts and s.received_at = h.received_at) then 'changed'
              else 'foreign'  -- from the new server, which had the bucket first
            end as result
          from source s
          left join store h on h.device_id = s.device_id and h.bucket = s.bucket
          group by s.device_id, s.bucket, h.checksum
        ),
        days as materialized (
          select b.day,
            count(*) filter (where b.result = 'kept') as kept,
            sum(b.rows) - count(*) filter (where b.result <> 'foreign') as duplicate,
            count(*) filter (where b.result = 'missing') as missing,
            count(*) filter (where b.result = 'changed') as changed,
            count(*) filter (where b.result = 'foreign') as foreign_rows,
            sum(b.source_checksum) filter (where b.result <> 'foreign') as source_checksum,
            sum(b.store_checksum) filter (where b.result in ('kept', 'changed')) as store_checksum
          from buckets b
          group by b.day
        )
        update fleet.import_days d
        set rows_kept = coalesce(f.kept, 0), rows_duplicate = coalesce(f.duplicate, 0), rows_missing = coalesce(f.missing, 0),
          -- An imported row whose ts or received_at was changed looks as if it came from the new server. Such rows are found
          -- because fewer rows are left than were stored.
          rows_changed = coalesce(f.changed + greatest(least(f.foreign_rows, d.rows_stored - f.kept), 0), 0),
          source_checksum = coalesce(f.source_checksum, 0), store_checksum = coalesce(f.store_checksum, 0),
          checked_at = clock_timestamp()
        from fleet.import_days w
        left join days f on f.day = w.day
        where d.source = ($1).source and w.source = d.source and w.day = d.day
          and d.day >= $2::date and d.day < $3::date and d.checked_at is null
      $query$,
      fleet.checksum_expression('fleet.device_heartbeats')
    )
    using a, v_first::timestamptz, (v_last + 1)::timestamptz;
    update fleet.imports f
    set step_done = f.step_done + v_rows, step_rows = f.step_rows + v_rows
    where f.source = a.source;
    return true;
  end if;

  select sum(d.rows_kept), count(*) filter (
    where d.rows_missing > 0 or d.rows_changed > 0 or d.source_checksum <> d.store_checksum
  )
  into v_rows, v_bad
  from fleet.import_days d
  where d.source = a.source and d.checked_at is not null;
  update fleet.imports f
  set state = case when v_bad = 0 then 'verified' else 'moved' end, verified_at = clock_timestamp()
  where f.source = a.source;
  perform fleet.record_event(
    'import.verified', p_is_ok => v_bad = 0, p_rows => v_rows,
    p_detail => format(
      '%s: %s', a.source, case when v_bad = 0 then 'no difference' else format('differences on %s days', v_bad) end
    )
  );
  return false;
end
$$;

comment on function fleet.verify_days(fleet.imports, integer) is
  'Compares the next days of a table that is being imported with the store, row by row and by a checksum over all rows; after '
  'the last day, sets the state to verified or, if there are differences, to moved. False when nothing is left to compare.';
--! EndIncluded import/verify_days.sql
--! Included import/move_blocks.sql
create or replace function fleet.move_blocks(a fleet.imports, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_last bigint := least(a.end_block, a.next_block + a.batch_blocks);
  v_rows bigint;
  v_refused bigint;
  v_stored bigint;
begin
  -- Tried twice at most: since the days were counted, a row may have arrived for a day that has no partition.
  for v_try in 1..2 loop
    begin
      with given as materialized (
        select * from fleet.read_source(a, a.next_block, v_last)
      ),
      stored as (
        insert into fleet.device_heartbeats
        select (g.beat).*
        from given g
        where g.reason is null
        -- Sorted by device, as in ingest; within a bucket the row that was written first comes first.
        order by (g.beat).device_id, fleet.heartbeat_bucket((g.beat).ts), g.tid
        on conflict do nothing
        returning device_id, ts, received_at
      ),
      days as (
        insert into fleet.import_days as d (source, day, rows_stored)
        select a.source, s.ts::date, count(*)
        from stored s
        group by s.ts::date
        on conflict (source, day) do update
          set rows_stored = d.rows_stored + excluded.rows_stored
      ),
      devices as (
        -- A device existed when it sent a heartbeat, so the roster must not show a later enrolment.
        update fleet.devices d
        set enrolled_at = f.first_received_at
        from (select s.device_id, min(s.received_at) as first_received_at from stored s group by s.device_id) f
        where d.device_id = f.device_id and d.enrolled_at > f.first_received_at
      )
      select count(*), count(g.reason), (select count(*) from stored)
      into v_rows, v_refused, v_stored
      from given g;
      exit;
    exception when check_violation then
      if v_try = 2 then
        raise;
      end if;
      perform fleet.sync_partitions();
      perform fleet.create_partitions(r.day, r.day)
      from (
        select distinct (r.beat).ts::date as day from fleet.read_source(a, a.next_block, v_last) r where r.reason is null
      ) r
      where not exists (select from fleet.attached_partitions() p where p.range_start <= r.day and p.range_end > r.day);
    end;
  end loop;

  update fleet.imports f
  set next_block = v_last, step_done = v_last, step_rows = f.step_rows + v_rows,
    rows_read = f.rows_read + v_rows, rows_stored = f.rows_stored + v_stored, rows_refused = f.rows_refused + v_refused,
    rows_duplicate = f.rows_duplicate + v_rows - v_stored - v_refused,
    batch_blocks = fleet.next_batch_blocks(a.batch_blocks, v_rows, p_batch_rows)
  where f.source = a.source;
  if v_last < a.end_block then
    return true;
  end if;

  -- The next nightly run counts these partitions again.
  update fleet.hb_partitions p
  set row_count = null
  where p.state = 'active' and p.row_count is not null and p.archive_url is null
    and exists (
      select from fleet.import_days d
      where d.source = a.source and d.rows_stored > 0 and d.day >= p.range_start::date and d.day < p.range_end::date
    );
  update fleet.imports f
  set state = 'moved', moved_at = clock_timestamp()
  where f.source = a.source
  returning * into a;
  perform fleet.record_event(
    'import.moved', p_rows => a.rows_stored, p_duration_ms => fleet.elapsed_ms(a.started_at),
    p_detail => format(
      '%s, pass %s: %s read, %s duplicates, %s refused', a.source, a.pass, a.rows_read, a.rows_duplicate, a.rows_refused
    )
  );
  return false;
end
$$;

comment on function fleet.move_blocks(fleet.imports, integer) is
  'Stores the rows of the next blocks of a table that is being imported; false after the last block. The cursor advances in the '
  'same transaction, and existing heartbeats are kept.';
--! EndIncluded import/move_blocks.sql
--! Included import/create_forward_function.sql
-- Each table has its own trigger function: it is compiled once, and dropping it also drops the trigger, which otherwise only
-- the owner of the table may do. It names every column of fleet.device_heartbeats, so it is made again when they change.
create or replace function fleet.create_forward_function(a fleet.imports) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    $function$
      create or replace function fleet.%1$I() returns trigger
      language plpgsql
      volatile
      security definer
      set search_path = pg_catalog, pg_temp
      set timezone = 'UTC'
      set datestyle = 'ISO, MDY'
      set lock_timeout = '300ms'
      set jit = off
      as $forward$
      begin
        begin
          insert into fleet.device_heartbeats
          select (q.beat).*
          from (%2$s) q
          where q.reason is null
          order by (q.beat).device_id, (q.beat).ts
          on conflict do nothing;
        exception when others then
          perform fleet.record_forward_failure(%3$L, sqlerrm);
        end;
        return null;
      end
      $forward$
    $function$,
    'forward_' || a.relid, fleet.source_query(a, 'new_rows r', 'null::tid'), a.source
  );
  execute format(
    'comment on function fleet.%I() is %L', 'forward_' || a.relid,
    format('Trigger on %s: forwards new rows to the store until the import is confirmed or abandoned.', a.source)
  );
end
$$;

comment on function fleet.create_forward_function(fleet.imports) is
  'Creates the function of the trigger that forwards new rows of a table that is being imported, or creates it again for the '
  'columns that fleet.device_heartbeats has now.';
--! EndIncluded import/create_forward_function.sql
--! Included import/start_forwarding.sql
create or replace function fleet.start_forwarding(a fleet.imports) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not a.forwards then
    return fleet.stop_forwarding(a);
  end if;
  perform fleet.create_forward_function(a);
  -- Waits for running writers and blocks new ones until the commit. Then each row either is in the table already or is forwarded.
  execute format(
    'create or replace trigger fleet_forward after insert on %s referencing new table as new_rows '
      'for each statement execute function fleet.%I()',
    a.source, 'forward_' || a.relid
  );
  return false;
end
$$;

comment on function fleet.start_forwarding(fleet.imports) is
  'Creates a trigger on a table that is being imported, which forwards new rows to the store.';
--! EndIncluded import/start_forwarding.sql
--! Included archive/note_columns.sql
-- Called wherever the columns matter, so it finds renames without an event trigger: a column keeps its attnum when it is renamed.
-- A restored dump gives the columns new numbers, so after a restore only the names decide.
create or replace function fleet.note_columns() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table oid := 'fleet.device_heartbeats'::regclass;
  v_system bigint := 0;
  v_at timestamptz;
  v_is_known boolean;
  v_is_same_table boolean;
  v_count integer := 0;
begin
  if pg_is_in_recovery() then
    return 0;  -- the primary records the changes
  end if;
  -- A managed Postgres may hide the system identifier. Then the oid of the table has to be enough.
  if has_function_privilege('pg_control_system()', 'execute') then
    v_system := (select s.system_identifier from pg_control_system() s);
  end if;
  for v_attempt in 1..2 loop
    if not exists (
      with found as (
        select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type, a.attnum, v_table as relid,
          v_system as system_identifier
        from pg_attribute a
        where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped
      ),
      known as (
        select h.name, h.type, h.attnum, h.relid, h.system_identifier
        from fleet.heartbeat_columns h
      )
      (table found except table known) union all (table known except table found)
    ) then
      return 0;
    end if;
    -- Another session may be recording the same changes, so look again once it has finished.
    lock table fleet.heartbeat_columns in share row exclusive mode;
  end loop;

  v_at := clock_timestamp();
  select count(*) > 0, bool_and(h.relid = v_table and h.system_identifier = v_system) into v_is_known, v_is_same_table
  from fleet.heartbeat_columns h;
  if v_is_known then
    with now_columns as (
      select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type,
        case when v_is_same_table then a.attnum::text else a.attname::text end as key
      from pg_attribute a
      where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped
    ),
    known as (
      select h.name, h.type, case when v_is_same_table then h.attnum::text else h.name end as key
      from fleet.heartbeat_columns h
    ),
    pairs as (
      select k.name as old_name, k.type as old_type, n.name as new_name, n.type as new_type
      from known k
      full join now_columns n using (key)
    )
    insert into fleet.column_changes (changed_at, change, name, new_name, type, new_type)
    select v_at, c.change, coalesce(p.old_name, p.new_name), case c.change when 'renamed' then p.new_name end,
      p.old_type, p.new_type
    from pairs p
    cross join lateral (
      select 'added' as change where p.old_name is null
      union all
      select 'dropped' where p.new_name is null
      union all
      select 'renamed' where p.old_name <> p.new_name
      union all
      select 'retyped' where p.old_type <> p.new_type
    ) c
    order by c.change, coalesce(p.old_name, p.new_name);
    get diagnostics v_count = row_count;
  end if;
  delete from fleet.heartbeat_columns;
  insert into fleet.heartbeat_columns (name, type, attnum, relid, system_identifier)
  select a.attname, format_type(a.atttypid, a.atttypmod), a.attnum, v_table, v_system
  from pg_attribute a
  where a.attrelid = v_table and a.attnum > 0 and not a.attisdropped;

  perform fleet.create_forward_function(i)
  from fleet.imports i
  where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;

  perform fleet.record_event(
    'columns.change',
    p_detail => string_agg(
      concat_ws(
        ' ', c.change, c.name,
        case c.change
          when 'renamed' then 'to ' || c.new_name
          when 'retyped' then 'to ' || c.new_type
          else coalesce(c.new_type, c.type)
        end
      ),
      ', ' order by c.change_id
    )
  )
  from fleet.column_changes c
  where c.changed_at = v_at
  having count(*) > 0;
  return v_count;
end
$$;

comment on function fleet.note_columns() is
  'Compares the columns of fleet.device_heartbeats with those recorded last, and records in fleet.column_changes which were '
  'added, dropped, renamed or retyped. Returns how many. Called by fleet.maintain() and before a partition is retired or '
  'restored. '
  'Example: select fleet.note_columns(); select * from fleet.column_changes;';
--! EndIncluded archive/note_columns.sql
--! Included ingest/ingest.sql
create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off  -- measured: JIT compilation cut the rate from 140 to 4 batches a second
as $$
#variable_conflict use_column
declare
  v_results text[];
  v_reasons text[];
  v_tss timestamptz[];
  v_device_ids bigint[];
begin
  if p_received_at > now() then
    perform fleet.not_in_future(p_received_at);
  end if;
  -- At most twice: a partition can be retired between the read of fleet.hb_partitions and the insert (23514).
  for v_try in 1..2 loop
    begin
      with given as materialized (
        select i.ordinality as item, i.device_id, coalesce(i.ts, p_received_at) as ts,
          i.signal_dbm, i.battery_pct, i.unity_running, i.network_type, i.agent_version,
          case s.store_ip
            when 'full' then i.ip
            when 'prefix' then network(set_masklen(i.ip, case family(i.ip) when 4 then 24 else 48 end))::inet
          end as ip,
          p_received_at - least(s.max_late, s.retention) as oldest,
          p_received_at + s.max_future as newest
        from rows from (
          json_to_recordset(p_batch) as (
            device_id bigint, ts timestamptz,
            signal_dbm smallint, battery_pct smallint, unity_running boolean, network_type text, agent_version text,
            ip inet
          )
        ) with ordinality i
        cross join fleet.settings s
      ),
      days as materialized (  -- bounds are UTC midnights, so a day is either wholly inside a partition or outside
        select d.day,
          exists (
            select from fleet.hb_partitions p
            where p.range_start <= d.day and p.range_end > d.day
              and p.state in ('active', 'restored') and p.relid is not null
          ) as has_partition
        from (select distinct date_trunc('day', g.ts) as day from given g where g.ts between g.oldest and g.newest) d
      ),
      judged as materialized (
        select g.*,
          case
            when g.ts < g.oldest then 'too_late'
            when g.ts > g.newest then 'in_future'
            when not d.has_partition then 'no_partition'
          end as reason,
          row_number() over (
            partition by
              g.device_id,
              fleet.heartbeat_bucket(g.ts),
              g.ts between g.oldest and g.newest  -- a refused heartbeat does not use up a bucket
            order by g.item
          ) = 1 as is_first
        from given g
        left join days d on d.day = date_trunc('day', g.ts)
      ),
      stored as (
        insert into fleet.device_heartbeats (
          ts, received_at, device_id,
          signal_dbm, battery_pct, unity_running, network_type, agent_version,
          ip
        )
        select j.ts, p_received_at, j.device_id,
          j.signal_dbm, j.battery_pct, j.unity_running, j.network_type, j.agent_version,
          j.ip
        from judged j
        where j.reason is null and j.is_first
        order by j.device_id, j.ts  -- the same order in every batch: no deadlock
        on conflict do nothing
        returning device_id, ts
      )
      select
        array_agg(case when j.reason is null then case when s.ts is null then 'duplicate' else 'stored' end end order by j.item),
        array_agg(j.reason order by j.item),
        array_agg(j.ts order by j.item),
        array_agg(j.device_id order by j.item)
      into v_results, v_reasons, v_tss, v_device_ids
      from judged j
      left join stored s on s.device_id = j.device_id and s.ts = j.ts and j.is_first;
      exit;
    exception when check_violation then
      if v_try = 2 then
        raise;
      end if;
      perform fleet.sync_partitions();
    end;
  end loop;

  -- After the heartbeats and last status, in every batch: all batches take locks in the same order, so they do not deadlock.
  if array_position(v_results, null) is not null then
    v_results := fleet.quarantine(p_batch, p_received_at, v_device_ids, v_tss, v_reasons, v_results);
  end if;

  return query
    select u.item::integer, u.result, case u.result when 'rejected' then 'quarantine_full' else u.reason end, u.ts
    from unnest(v_results, v_reasons, v_tss) with ordinality as u (result, reason, ts, item);
end
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement. The batch is a JSON array of {device_id, ts, battery_pct, network_type, '
  'unity_running, signal_dbm, agent_version, ip}. Answers each item in order: stored, duplicate (same device and 10-second '
  'bucket), quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). '
  'Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded ingest/ingest.sql
--! Included ingest/unreadable_fields.view.sql
create or replace view fleet.unreadable_fields as
select f.device_id, d.alias, d.cohort, f.field, f.times, f.first_at, f.last_at, f.example
from fleet.device_unreadable_fields f
join fleet.devices d using (device_id);

comment on view fleet.unreadable_fields is
  'What agents send that cannot be read, by device and field: how often, since when, and the last value. An optional field is left '
  'out and the rest of the heartbeat counts. For ts, device_id and body the heartbeat was refused. Kept for '
  'settings.quarantine_keep. Example: select * from fleet.unreadable_fields where last_at > now() - interval ''1 hour'';';
--! EndIncluded ingest/unreadable_fields.view.sql
--! Included ingest/record_unreadable_fields.sql
create or replace function fleet.record_unreadable_fields(p_counts json) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.device_unreadable_fields as f (device_id, field, times, first_at, last_at, example)
  select r.device_id, r.field, r.times, now(), now(), r.example
  from json_to_recordset(p_counts) as r (device_id bigint, field text, times bigint, example text)
  join fleet.devices d using (device_id)  -- a gateway may name a device that does not exist
  order by r.device_id, r.field
  on conflict on constraint device_unreadable_fields_pkey do update
    set times = f.times + excluded.times,
      last_at = excluded.last_at,
      example = excluded.example;
$$;

comment on function fleet.record_unreadable_fields(json) is
  'Records fields that a server process could not read, by device; sent every 10 seconds. Example: select '
  'fleet.record_unreadable_fields(''[{"device_id":1,"field":"battery_pct","times":3,"example":"87.5"}]'');';
--! EndIncluded ingest/record_unreadable_fields.sql
--! Included checks/check_fields.sql
create or replace function fleet.check_fields(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_devices bigint;
  v_refused bigint;
  v_fields text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'unreadable_fields';
  with recent as (
    select f.*
    from fleet.device_unreadable_fields f
    where f.last_at > p_now - interval '1 hour'
  )
  select count(distinct r.device_id), count(distinct r.device_id) filter (where r.field in ('ts', 'device_id', 'body')),
    (
      select string_agg(
        format('%s of %s devices (device %s sent %s)', g.field, g.devices, g.device_id, g.example), ', ' order by g.devices desc, g.field
      )
      from (
        select s.field, count(*) as devices, (array_agg(s.device_id order by s.last_at desc, s.device_id))[1] as device_id,
          (array_agg(s.example order by s.last_at desc, s.device_id))[1] as example
        from recent s
        group by s.field
      ) g
    )
  into v_devices, v_refused, v_fields
  from recent r;
  -- One odd device among many is no trouble of the fleet. A heartbeat that is refused is lost, so that is always said.
  status := case
    when v_refused > 0 or v_devices > 0 and v_devices * 100 >= (select count(*) from fleet.devices d where d.revoked_at is null)
      then 'warn'
    else 'ok'
  end;
  detail := case
    when v_devices = 0 then 'every field that devices sent in the last hour could be read'
    else 'in the last hour these could not be read: ' || v_fields
  end;
  remedy := case
    when status <> 'ok' then
      e'-- correct what the agents send; an hour later this is clear. ts, device_id and body: the whole heartbeat was refused'
      '\nselect * from fleet.unreadable_fields where last_at > now() - interval ''1 hour'' order by last_at desc limit 50;'
  end;
  return next;
end
$$;

comment on function fleet.check_fields(timestamptz) is
  'The part of fleet.check() about what agents send: fields that could not be read, and heartbeats that were refused.';
--! EndIncluded checks/check_fields.sql
--! Included checks/check_devices.sql
create or replace function fleet.check_devices(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set jit = off
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  -- More than that have one cause in common, such as an interval that was changed.
  c_candidates constant integer := 10000;
  c_named constant integer := 10;
  v_day date;
  v_count bigint;
  v_names text;
  v_commands text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'shared_tokens';
  select max(r.day) into v_day
  from fleet.rolled_up_days r
  where r.day between p_now::date - 3 and p_now::date - 1
    and exists (select from fleet.rolled_up_days b where b.day = r.day - 1);

  -- Two days in a row, because a clock that jumps back, or heartbeats of an import, can double one. A device that was slowed
  -- sent more before, so its shortest interval of these days and the day before them counts.
  select count(*),
    string_agg(
      format('device %s (%s) sent %s heartbeats instead of %s', f.device_id, f.alias, f.beats, f.expected),
      '; ' order by f.nth
    ) filter (where f.nth <= c_named),
    string_agg(format('select fleet.renew_token(%s);', f.device_id), e'\n' order by f.nth) filter (where f.nth <= c_named)
  into v_count, v_names, v_commands
  from (
    select d.device_id, d.alias, l.beats, l.expected, row_number() over (order by l.excess desc, d.device_id) as nth
    from (
      select a.device_id
      from fleet.device_availability_daily a
      where a.day = v_day and a.beats > a.expected * 1.5 + 10
      order by a.device_id
      limit c_candidates
    ) c
    join fleet.devices d on d.device_id = c.device_id
    cross join lateral (
      select max(a.beats) filter (where a.day = v_day) as beats, max(x.expected) filter (where a.day = v_day) as expected,
        count(*) filter (where a.day >= v_day - 1 and a.beats > 1.5 * x.expected + 10) as days,
        max(a.beats / greatest(x.expected, 1.0)) filter (where a.day = v_day) as excess
      from fleet.device_availability_daily a
      cross join lateral (
        select round(
          a.expected * extract(epoch from a.heartbeat_interval) / extract(epoch from least(d.heartbeat_interval, i.shortest))
        )::integer as expected
        from (
          select min(s.heartbeat_interval) as shortest
          from fleet.device_availability_daily s
          where s.device_id = d.device_id and s.day between v_day - 2 and v_day
        ) i
      ) x
      where a.device_id = d.device_id and a.day between v_day - 1 and v_day
    ) l
    where l.days = 2 and d.revoked_at is null
      -- After a new token or interval, only the days that follow count.
      and not exists (
        select from fleet.token_change_log l
        where l.subject = 'device:' || d.device_id and l.changed_at >= (v_day - 1)::timestamptz
      )
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case
    when v_day is null then 'no two days are rolled up yet'
    when v_count = 0 then format('no device sent more than expected on %s and the day before', v_day)
    else format(
      '%s devices sent more than 1.5 times as many heartbeats as expected on %s and the day before: %s%s',
      v_count, v_day, v_names, case when v_count > c_named then '; …' end
    )
  end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- was an image cloned? Then enroll each copy (fleet.enroll_device), and give the device the token that this prints',
      v_commands
    )
  end;
  return next;
end
$$;

comment on function fleet.check_devices(timestamptz) is
  'The part of fleet.check() about devices: those that sent more than 1.5 times as many heartbeats as expected on the last two '
  'days that are rolled up, because several of them use one token. Reads the rollups, and no heartbeats. '
  'Example: select * from fleet.check_devices();';
--! EndIncluded checks/check_devices.sql
--! Included checks/check.sql
-- The themes, the most important first. If one of them fails with an error, the others still report what they found.
create or replace function fleet.check(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_theme text;
begin
  perform fleet.not_in_future(p_now);
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_fields($1)', 'check_silence($1)', 'check_devices($1)', 'check_scheduler($1)',
    'check_archive($1)', 'check_columns()', 'check_sessions($1)', 'check_storage($1)', 'check_imports($1)', 'check_settings()'
  ] loop
    begin
      return query execute 'select * from fleet.' || v_theme using p_now;
    exception when others then
      check_name := split_part(v_theme, '(', 1);
      status := 'fail';
      detail := 'the check itself failed: ' || sqlerrm;
      remedy := format(e'-- shows the whole error\nselect * from fleet.%I();', check_name);
      return next;
    end;
  end loop;
end
$$;

comment on function fleet.check(timestamptz) is
  'One row for each thing that can go wrong: ok, warn or fail, with the commands that fix it, one on each line. They are SQL, to '
  'be run as fleet_dba unless the first line says "-- as superuser" or "-- as fleet_owner", or shell commands if it says "# in a '
  'shell". Reads the heartbeats of a few devices only. Example: select * from fleet.check() where status <> ''ok'';';
--! EndIncluded checks/check.sql
--! Included jobs/prune.sql
create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_quarantined bigint;
  v_events bigint;
  v_commands bigint;
  v_dispatches bigint;
  v_rollups bigint;
begin
  delete from fleet.heartbeat_quarantine q
  using fleet.settings s
  where q.received_at < p_now - s.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  using fleet.settings s
  where e.at < p_now - s.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.device_commands c
  using fleet.settings s
  where c.created_at < p_now - s.commands_keep;
  get diagnostics v_commands = row_count;
  delete from fleet.command_dispatch_log l
  using fleet.settings s
  where l.at < p_now - s.commands_keep;
  get diagnostics v_dispatches = row_count;
  delete from fleet.device_unreadable_fields f
  using fleet.settings s
  where f.last_at < p_now - s.quarantine_keep;
  delete from fleet.device_availability_daily a
  using fleet.settings s
  where a.day < p_now - greatest(s.rollups_keep, s.retention);
  get diagnostics v_rollups = row_count;
  delete from fleet.rolled_up_days r
  using fleet.settings s
  where r.day < p_now - greatest(s.rollups_keep, s.retention);
  delete from fleet.late_arrivals l
  using fleet.settings s
  where l.day < p_now - greatest(s.rollups_keep, s.retention);
  delete from fleet.storage_daily d
  using fleet.settings s
  where d.day < p_now - s.rollups_keep;
  delete from fleet.token_change_log l
  where l.changed_at < p_now - interval '7 days';
  delete from fleet.cohorts c
  where c.min_interval is null and c.changed_at < p_now - interval '7 days';
  delete from fleet.slo_counts c
  where c.minute < p_now - interval '7 days';
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches + v_rollups;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Deletes quarantined heartbeats, events, commands and rollups that are older than their settings; returns how many. Run by '
  'fleet.nightly().';
--! EndIncluded jobs/prune.sql

--! Included setup/grants.sql
-- Who may do what. Everything is revoked first, so that only the grants in this file apply.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba, fleet_verifier;
revoke create on schema fleet_detached from fleet_archiver;
grant usage on schema fleet_detached to fleet_archiver, fleet_reader, fleet_dba;

-- Nobody changes heartbeats, not even the owner: rows are dropped with their partition, once its archive is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.token_changes(xid8),
  fleet.recent_tokens(integer),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.record_slo(text, json),
  fleet.record_unreadable_fields(json),
  fleet.end_session(bytea, timestamptz),
  fleet.is_session_ended(bytea),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer, text, text),
  fleet.list_devices_legacy(text, interval, bigint, integer, text, text),
  fleet.marks_hold(interval),  -- called by the view devices_offline
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.silence_at(timestamptz),  -- called by the view fleet_silence
  fleet.postgres_started_at(),
  fleet.job_history()  -- called by the view job_health
to fleet_server, fleet_reader, fleet_dba;
-- Called by the views partition_health and storage_growth.
grant execute on function fleet.table_of(fleet.hb_partitions) to fleet_server, fleet_archiver, fleet_reader, fleet_dba;

grant execute on function
  fleet.create_device(text, text),
  fleet.revoke_device(bigint),
  fleet.rename_device(bigint, text),
  fleet.move_device(bigint, text),
  fleet.renew_token(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(timestamptz),
  -- The procedures call these with the rights of their caller. The steps run with the owner's rights; see fleet.begin_run().
  fleet.begin_run(text, interval, timestamptz),
  fleet.run_next_step(bigint, integer),
  fleet.end_run(bigint)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_planned_steps(bigint)
to fleet_server, fleet_dba;
grant execute on procedure fleet.maintain(bigint, timestamptz) to fleet_dba;

grant execute on function
  fleet.enroll_device(text, text),
  fleet.is_night_missed(timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.rollup_plan(timestamptz),
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.set_cadence(text, timestamptz),
  fleet.recommend_cadence(),
  fleet.force_unlock(text),
  fleet.set_cohort_interval(text, interval),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.accept_archive(text, text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.roll_up(date, timestamptz, boolean),
  fleet.availability_of_day(date, timestamptz, bigint[]),
  fleet.schedule_jobs(),
  fleet.wake_archiver(text),
  fleet.import_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_import(regclass),
  fleet.forget_import(text),
  fleet.refused_rows(regclass, integer),
  -- The procedures of imports call these with the rights of their caller.
  fleet.begin_import(regclass, jsonb, text, timestamptz, boolean),
  fleet.begin_verification(regclass),
  fleet.begin_abandoning(regclass),
  fleet.import_step(text, integer),
  fleet.end_import(text, text),
  fleet.check_partitions(timestamptz),
  fleet.check_ingest(timestamptz),
  fleet.check_fields(timestamptz),
  fleet.check_silence(timestamptz),
  fleet.check_devices(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_columns(),
  fleet.check_sessions(timestamptz),
  fleet.check_storage(timestamptz),
  fleet.check_imports(timestamptz),
  fleet.check_settings(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values(),
  fleet.silence_metrics(),
  fleet.metric_definitions()
to fleet_dba;

grant execute on procedure
  fleet.import_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_import(regclass, text),
  fleet.abandon_import(regclass, text),
  fleet.run_import(text, integer, interval, text)
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.content_checksum(regclass, jsonb, integer),
  fleet.checksum_expression(regclass, jsonb, integer),
  fleet.archive_form(text),
  fleet.unarchivable_columns(regclass),
  fleet.map_columns(jsonb, timestamptz),
  fleet.note_columns(),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.take_index_lock(),
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.count_retired(text, text, bigint, jsonb, integer),
  fleet.record_export(text, text),
  fleet.record_upload(text, text, text, text, bigint, integer, integer),
  fleet.record_columns(text, text, jsonb, integer, integer),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.fail_restore(text, text, text),
  fleet.register_archive(
    text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
    integer
  )
to fleet_archiver;

grant select on
  fleet.device_status, fleet.device_status_legacy, fleet.devices_offline, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;
grant select on fleet.unity_down to fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.storage_history, fleet.job_health,
  fleet.fleet_silence, fleet.fleet_trend, fleet.missed_beats, fleet.silence_samples, fleet.import_progress,
  fleet.device_availability, fleet.slo, fleet.unreadable_fields
to fleet_reader, fleet_dba;
grant execute on function fleet.device_availability(date, date, bigint, timestamptz) to fleet_reader, fleet_dba;
-- For the ops page.
grant select on
  fleet.partition_health, fleet.archives, fleet.job_health, fleet.fleet_silence, fleet.fleet_trend, fleet.slo,
  fleet.unreadable_fields
to fleet_server;
-- Called by the view import_progress.
grant execute on function fleet.lock_holders(text) to fleet_reader, fleet_dba;
grant select on fleet.archives to fleet_archiver, fleet_verifier;
grant execute on function fleet.confirm_archive(text, text, numeric, bigint, timestamptz, timestamptz) to fleet_verifier;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_items to fleet_archiver, fleet_dba;
grant select on fleet.restore_requests to fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on
  fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual,
  fleet.device_availability_daily, fleet.rolled_up_days, fleet.late_arrivals, fleet.storage_daily
to fleet_dba;
grant select on fleet.column_changes to fleet_reader, fleet_dba;
grant select on fleet.imports, fleet.import_days, fleet.import_refusals to fleet_dba;
grant select, insert, update, delete on fleet.import_devices to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep, rollups_keep, silence_window, silence_share, silence_ratio,
  silence_min_devices, ingest_gap, archive_stores, proofs_needed
) on fleet.settings to fleet_dba;

-- Old names, which go in 0.3.
grant execute on procedure
  fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_adoption(regclass, text),
  fleet.abandon_adoption(regclass, text),
  fleet.run_adoption(text, integer, interval, text)
to fleet_dba;
grant execute on function
  fleet.adoption_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_adoption(regclass),
  fleet.forget_adoption(text)
to fleet_dba;
grant execute on function fleet.adopt_archive(
  text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint, jsonb, timestamptz, integer,
  integer
) to fleet_archiver;
grant select on fleet.adoption_progress to fleet_reader, fleet_dba;
--! EndIncluded setup/grants.sql
