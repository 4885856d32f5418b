--! Previous: sha1:e74e38cc82d13f19baefa9bc1d99124b00b9a3ee
--! Hash: sha1:43661a985c4aa801f32a0e5de148731595c9c084
--! Message: heartbeats as real agents send them

-- Values that cannot be read, an agent's own values, clocks that are wrong, and devices that share a token.

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

-- Every row changes each minute. With free space in each page these are HOT updates, and VACUUM has nothing to do.
create table if not exists fleet.fleet_counts (
  place bigint not null,
  cohort text not null,
  counted_at timestamptz not null,
  devices bigint not null,
  online bigint not null,
  late bigint not null,
  offline bigint not null,
  new bigint not null,
  clock_skewed bigint not null,
  unity_down bigint not null,
  window_start timestamptz not null,
  active bigint not null,
  gone_quiet bigint not null,
  newest_received_at timestamptz,
  ahead bigint not null,
  constraint fleet_counts_pkey primary key (place)
) with (fillfactor = 50);
comment on table fleet.fleet_counts is
  'The counts of fleet.fleet_summary and fleet.fleet_silence for a large fleet and each of its cohorts, kept by '
  'fleet.count_fleet(). Empty for a small fleet. Read it through these views.';
comment on column fleet.fleet_counts.place is
  'The order of the rows: 1 is the whole fleet, then the cohorts by name, so that no read has to sort names.';
comment on column fleet.fleet_counts.cohort is 'fleet.devices.cohort, or (all).';
comment on column fleet.fleet_counts.counted_at is 'When the fleet was counted. It is the same in all rows.';
comment on column fleet.fleet_counts.devices is 'Devices that were enrolled.';
comment on column fleet.fleet_counts.online is 'Devices that were online.';
comment on column fleet.fleet_counts.late is 'Devices that were late.';
comment on column fleet.fleet_counts.offline is 'Devices that were offline.';
comment on column fleet.fleet_counts.new is 'Devices that had not sent a heartbeat yet.';
comment on column fleet.fleet_counts.clock_skewed is 'Devices that were heard from and whose clock was wrong.';
comment on column fleet.fleet_counts.unity_down is
  'Devices that were online, late or clock_skewed and whose Unity app was down.';
comment on column fleet.fleet_counts.window_start is
  'The start of the window in which active and gone_quiet were counted. It is the same in all rows.';
comment on column fleet.fleet_counts.active is 'Devices that were not quiet at some time in the window.';
comment on column fleet.fleet_counts.gone_quiet is 'Those of the active devices that were quiet when they were counted.';
comment on column fleet.fleet_counts.newest_received_at is 'When the newest heartbeat of these devices had arrived.';
comment on column fleet.fleet_counts.ahead is
  'Devices that were last heard from further in the future than settings.max_future, because the clock of Postgres ran ahead.';

-- Views with another order of columns, and a function with another name of an argument.

-- Without CASCADE, so that Postgres names what others have made of these views. See docs/upgrade.md.
drop function if exists fleet.list_devices(text, interval, bigint, integer, text, text);
drop function if exists fleet.list_devices_legacy(text, interval, bigint, integer, text, text);
drop view if exists
  fleet.devices_offline, fleet.unity_down, fleet.missed_beats, fleet.fleet_summary, fleet.device_status, fleet.device_status_legacy,
  fleet.device_state;
drop view if exists fleet.fleet_silence;
drop function if exists fleet.silence_at(timestamptz);
drop function if exists fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz);

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
--! Included archive/count_retired.sql
-- A drop relies on this count, so it is made with the owner's rights. What the archiver says that it copied is compared with it.
create or replace function fleet.count_retired(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_columns jsonb default null,
  p_checksum_version integer default 2,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_variable
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_columns jsonb;
  v_hash numeric;
begin
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is not null then
    -- Nobody has been allowed to write to the table since it was detached. Counting a large day takes many seconds, so it happens
    -- before the row is locked, and the archiver can renew its lease meanwhile.
    select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) into v_columns
    from fleet.archive_columns(v_table) c;
    select s.row_count, s.content_checksum, s.min_ts, s.max_ts
    into row_count, content_checksum, min_ts, max_ts
    from fleet.content_checksum(v_table, v_columns, p_checksum_version) s;
    v_hash := fleet.rows_hash(v_table);
  end if;

  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s has no table to archive', p_partition),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if p_row_count is distinct from row_count or coalesce(p_columns, v_columns) <> v_columns then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s has %s rows, but %s says that it copied %s; nothing is archived',
        p_partition, row_count, p_worker, coalesce(p_row_count::text, 'nothing')
      ),
      detail = format('columns of the table: %s; columns copied: %s', v_columns, coalesce(p_columns, v_columns)),
      hint = format(
        'The table was changed while it was copied, or the archiver cannot be trusted. Hold the partition while you look: '
        'select fleet.hold_partition(%L, ''why'');', p_partition
      );
  end if;
  if min_ts < v_partition.range_start or max_ts >= v_partition.range_end then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s covers %s to %s, but its rows range from %s to %s',
        p_partition, v_partition.range_start, v_partition.range_end, min_ts, max_ts
      ),
      hint = format(
        'The table was changed after it was retired. Hold the partition while you look: '
        'select fleet.hold_partition(%L, ''why'');', p_partition
      );
  end if;
  update fleet.hb_partitions p
  set counted = jsonb_build_object(
    'row_count', count_retired.row_count, 'content_checksum', count_retired.content_checksum::text,
    'min_ts', count_retired.min_ts, 'max_ts', count_retired.max_ts, 'columns', v_columns, 'checksum_version', p_checksum_version,
    'rows_hash', v_hash::text
  )
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.count_retired(text, text, bigint, jsonb, integer) is
  'Archiving: counts the rows of a retired table and computes their checksum, with the owner''s rights. Compares the result '
  'with what the archiver says that it copied, then records and returns it. Later proofs and the drop are compared with this.';
--! EndIncluded archive/count_retired.sql
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
--! Included ingest/add_field.sql
create or replace function fleet.add_field(p_name text, p_type regtype, p_comment text) returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  c_tables constant regclass[] := array[
    'fleet.device_heartbeats', 'fleet.device_heartbeats_template', 'fleet.device_last_status'
  ];
  v_table regclass;
  v_column record;
begin
  foreach v_table in array c_tables loop
    select format_type(a.atttypid, a.atttypmod) as type, a.attnotnull or a.attgenerated <> '' or a.attidentity <> '' as is_bound
    into v_column
    from pg_attribute a
    where a.attrelid = v_table and a.attname = p_name and not a.attisdropped;
    if v_column.type <> format_type(p_type, null) then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s has a column %s of type %s already, and the field needs one of type %s', v_table, p_name, v_column.type,
          format_type(p_type, null)
        ),
        hint = format(
          'Rename it and migrate again. As fleet_owner: alter table %s rename column %I to %I;', v_table, p_name, 'own_' || p_name
        );
    elsif v_column.is_bound then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s has a column %s already that is NOT NULL or generated, and a heartbeat need not have the field', v_table, p_name
        ),
        hint = format(
          'Drop NOT NULL, or rename the column, and migrate again. As fleet_owner: alter table %s alter column %I drop not null;',
          v_table, p_name
        );
    end if;
  end loop;

  -- A new store begins with the column, so it is not recorded as a change: fleet.note_columns() records all columns again below.
  delete from fleet.heartbeat_columns
  where not exists (select from fleet.device_heartbeats)
    and not exists (select from fleet.hb_partitions p where p.state <> 'active')
    and not exists (select from fleet.column_changes);

  -- While this waits for a lock on one partition, heartbeats wait behind it. So it gives up soon, lets them through and tries
  -- again.
  for v_try in 1..20 loop
    begin
      foreach v_table in array c_tables loop
        execute format('alter table %s add column if not exists %I %s', v_table, p_name, format_type(p_type, null));
      end loop;
      -- A partition that exists gets the column, but not its comment.
      foreach v_table in array c_tables || array(select a.relid::regclass from fleet.attached_partitions() a) loop
        execute format('comment on column %s.%I is %L', v_table, p_name, p_comment);
      end loop;
      exit;
    exception when lock_not_available then
      if v_try = 20 then
        raise exception using
          errcode = 'FL003',
          message = format('fleet.device_heartbeats is in use: 20 attempts to add the column %s failed', p_name),
          hint = 'Nothing has changed. Wait until VACUUM, pg_dump or a long query has ended, and migrate again. Who it is: '
            'select pid, state, query from pg_stat_activity where query ilike ''%device_heartbeats%'';';
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;
  perform fleet.note_columns();
end
$$;

comment on function fleet.add_field(text, regtype, text) is
  'Adds the column of a new field to the heartbeats, to the template of their partitions and to last status, with its comment. '
  'Called by the migration of the field; may be called again. See docs/add-a-field.md. '
  'Example: select fleet.add_field(''storage_free_mb'', ''integer'', ''Free storage in MB.'');';
--! EndIncluded ingest/add_field.sql

select fleet.add_field('extra', 'jsonb', 'The agent''s own values: a JSON object of at most 2 KiB.');

--! Included ingest/stored_ip.sql
create or replace function fleet.stored_ip(p_ip inet, p_store_ip text) returns inet
language sql
immutable
parallel safe
return case p_store_ip
  when 'full' then p_ip
  when 'prefix' then network(set_masklen(p_ip, case family(p_ip) when 4 then 24 else 48 end))::inet
end;

comment on function fleet.stored_ip(inet, text) is
  'What is stored of an address by settings.store_ip: all of it (full), its network (prefix) or nothing (none). '
  'Example: select fleet.stored_ip(''192.0.2.7'', ''prefix'');';
--! EndIncluded ingest/stored_ip.sql
--! Included ingest/reported_values.sql
create or replace function fleet.reported_values(p_payload jsonb) returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p_payload || jsonb_build_object('ip', fleet.stored_ip((p_payload ->> 'ip')::inet, s.store_ip))
  from fleet.settings s;
$$;

comment on function fleet.reported_values(jsonb) is
  'A heartbeat as it arrived, with as much of its address as settings.store_ip allows. '
  'Example: select fleet.reported_values(payload) from fleet.heartbeat_quarantine limit 1;';
--! EndIncluded ingest/reported_values.sql
--! Included jobs/postgres_started_at.sql
create or replace function fleet.postgres_started_at() returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case when pg_postmaster_start_time() <= clock_timestamp() then pg_postmaster_start_time() end;
$$;

comment on function fleet.postgres_started_at() is
  'When Postgres started; null if its clock ran ahead then. No job is late because it did not run before. '
  'Example: select now() - fleet.postgres_started_at();';
--! EndIncluded jobs/postgres_started_at.sql
--! Included status/allowed_lag.sql
create or replace function fleet.allowed_lag(p_offline_after interval, p_max_late interval) returns interval
language sql
immutable
parallel safe
return greatest(interval '1 minute', least(p_offline_after, p_max_late));

comment on function fleet.allowed_lag(interval, interval) is
  'How much later than its ts the newest heartbeat of a device may arrive. If it arrives later than that, the clock of the device '
  'is wrong. '
  'Example: select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s;';
--! EndIncluded status/allowed_lag.sql
--! Included status/is_ahead.sql
create or replace function fleet.is_ahead(p_ts timestamptz, p_now timestamptz default now()) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p_ts > p_now + s.max_future from fleet.settings s;
$$;

comment on function fleet.is_ahead(timestamptz, timestamptz) is
  'Whether a time is further in the future than settings.max_future allows. '
  'Example: select fleet.is_ahead(now() + interval ''1 hour'');';
--! EndIncluded status/is_ahead.sql
--! Included status/record_arrivals.sql
create or replace function fleet.record_arrivals(
  p_device_ids bigint[],
  p_received_ats timestamptz[],
  p_tss timestamptz[] default '{}'
) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_bound timestamptz;
  v_lag interval;
  v_rows bigint;
begin
  select now() + s.max_future, fleet.allowed_lag(s.offline_after, s.max_late) into v_bound, v_lag from fleet.settings s;
  update fleet.device_last_status ls
  set last_ts = case when ls.last_ts > v_bound then coalesce(b.ts, ls.last_ts) else greatest(ls.last_ts, b.ts) end,
    last_received_at = case
      when ls.last_received_at > v_bound then b.received_at
      else greatest(ls.last_received_at, b.received_at)
    end,
    -- A duplicate may be a retry of a heartbeat that was on time.
    status = case
      when b.ts is not null and b.received_at - greatest(ls.last_ts, b.ts) > v_lag
        and b.received_at - greatest(ls.last_ts, b.ts) > 2 * coalesce(
          (select d.heartbeat_interval from fleet.devices d where d.device_id = ls.device_id), interval '0'
        ) then 'clock_skewed'
      else ls.status
    end,
    is_silent = ls.is_silent and b.received_at < now() - interval '2 minutes'
  from unnest(p_device_ids, p_received_ats, p_tss) as b (device_id, received_at, ts)
  where ls.device_id = b.device_id
    and (
      coalesce(ls.last_ts, '-infinity') < b.ts or ls.last_ts > v_bound and b.ts is not null
      or ls.last_received_at is null or ls.last_received_at < b.received_at or ls.last_received_at > v_bound
    );
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;

comment on function fleet.record_arrivals(bigint[], timestamptz[], timestamptz[]) is
  'Records when devices were heard from, without changing the values that they reported: for heartbeats that are older than the '
  'newest one, and for duplicates, which are passed without a ts. Devices that send only older heartbeats for '
  'settings.offline_after and for two of their intervals become clock_skewed. '
  'Returns how many rows changed.';
--! EndIncluded status/record_arrivals.sql
--! Included status/upsert_last_status.sql
create or replace function fleet.upsert_last_status(p_beats fleet.device_heartbeats[], p_are_stored boolean) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows bigint;
begin
  with newest as (
    select b.*, case when p_are_stored then b.ts end as stored_ts
    from unnest(p_beats) b
  )
--! Included status/upsert_last_status.inc.sql
insert into fleet.device_last_status as ls (
    device_id, last_ts, last_received_at, status, is_silent,
    battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra
  )
  select n.device_id, n.stored_ts, n.received_at,
    case
      -- The first comparison spares most batches the read of the settings.
      when n.ts < n.received_at - interval '1 minute'
        and n.received_at - n.ts > (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s)
        or n.stored_ts is null and fleet.is_ahead(n.ts, n.received_at) then 'clock_skewed'
      when n.unity_running is false then 'unity_down'
      else 'ok'
    end,
    -- The value rarely changes, so the update stays HOT.
    n.received_at < now() - interval '2 minutes',
    n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip, n.extra
  from newest n
  order by n.device_id  -- otherwise concurrent batches of the same devices deadlock
  on conflict (device_id) do update
    set last_ts = coalesce(excluded.last_ts, ls.last_ts),
      last_received_at = case
        when ls.last_received_at > excluded.last_received_at and not fleet.is_ahead(ls.last_received_at)
          then ls.last_received_at
        else excluded.last_received_at
      end,
      status = excluded.status,
      is_silent = excluded.is_silent,
      battery_pct = excluded.battery_pct,
      network_type = excluded.network_type,
      unity_running = excluded.unity_running,
      signal_dbm = excluded.signal_dbm,
      agent_version = excluded.agent_version,
      ip = excluded.ip,
      extra = excluded.extra
    -- A late arrival must not rewind a device. What lies in the future was written while the clock of Postgres ran ahead.
    -- fleet.is_ahead() is called only when the other comparisons are false.
    where case
      when excluded.last_ts is null then ls.last_received_at is null or ls.last_received_at < excluded.last_received_at
        or fleet.is_ahead(ls.last_received_at)
      else ls.last_ts is null or ls.last_ts < excluded.last_ts
        or fleet.is_ahead(ls.last_ts)
        or ls.last_ts = excluded.last_ts and fleet.is_ahead(ls.last_received_at)
    end;
--! EndIncluded status/upsert_last_status.inc.sql
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;

comment on function fleet.upsert_last_status(fleet.device_heartbeats[], boolean) is
  'Writes one heartbeat of each device to last status, as fleet.record_last_status() does for a batch: the newest of those that '
  'were stored, or of those that were refused (p_are_stored is false; last_ts then stays). Returns how many rows changed.';
--! EndIncluded status/upsert_last_status.sql
--! Included status/record_last_status.sql
-- Statement-level, so a batch of 500 heartbeats costs one upsert and not 500.
create or replace function fleet.record_last_status() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The clock, not now(): heartbeats that fleet.roll_up() does not wait for have to be recorded as late.
  v_today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
  v_written bigint;
begin
  with late as (
    insert into fleet.late_arrivals (device_id, day)
    select distinct n.device_id, (n.ts at time zone 'UTC')::date
    from new_rows n
    where n.ts < v_today
  ),
  newest as (
    select distinct on (r.device_id) r.*, r.ts as stored_ts
    from new_rows r
    order by r.device_id, r.ts desc
  )
--! Included status/upsert_last_status.inc.sql
insert into fleet.device_last_status as ls (
    device_id, last_ts, last_received_at, status, is_silent,
    battery_pct, network_type, unity_running, signal_dbm, agent_version, ip, extra
  )
  select n.device_id, n.stored_ts, n.received_at,
    case
      -- The first comparison spares most batches the read of the settings.
      when n.ts < n.received_at - interval '1 minute'
        and n.received_at - n.ts > (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s)
        or n.stored_ts is null and fleet.is_ahead(n.ts, n.received_at) then 'clock_skewed'
      when n.unity_running is false then 'unity_down'
      else 'ok'
    end,
    -- The value rarely changes, so the update stays HOT.
    n.received_at < now() - interval '2 minutes',
    n.battery_pct, n.network_type, n.unity_running, n.signal_dbm, n.agent_version, n.ip, n.extra
  from newest n
  order by n.device_id  -- otherwise concurrent batches of the same devices deadlock
  on conflict (device_id) do update
    set last_ts = coalesce(excluded.last_ts, ls.last_ts),
      last_received_at = case
        when ls.last_received_at > excluded.last_received_at and not fleet.is_ahead(ls.last_received_at)
          then ls.last_received_at
        else excluded.last_received_at
      end,
      status = excluded.status,
      is_silent = excluded.is_silent,
      battery_pct = excluded.battery_pct,
      network_type = excluded.network_type,
      unity_running = excluded.unity_running,
      signal_dbm = excluded.signal_dbm,
      agent_version = excluded.agent_version,
      ip = excluded.ip,
      extra = excluded.extra
    -- A late arrival must not rewind a device. What lies in the future was written while the clock of Postgres ran ahead.
    -- fleet.is_ahead() is called only when the other comparisons are false.
    where case
      when excluded.last_ts is null then ls.last_received_at is null or ls.last_received_at < excluded.last_received_at
        or fleet.is_ahead(ls.last_received_at)
      else ls.last_ts is null or ls.last_ts < excluded.last_ts
        or fleet.is_ahead(ls.last_ts)
        or ls.last_ts = excluded.last_ts and fleet.is_ahead(ls.last_received_at)
    end;
--! EndIncluded status/upsert_last_status.inc.sql
  get diagnostics v_written = row_count;
  -- These rows are locked already: the upsert locks those too that it leaves as they are.
  if v_written < (select count(*) from new_rows) then
    perform fleet.record_arrivals(array_agg(n.device_id), array_agg(n.received_at), array_agg(n.ts))
    from (select r.device_id, max(r.received_at) as received_at, max(r.ts) as ts from new_rows r group by r.device_id) n;
  end if;
  return null;
end
$$;

comment on function fleet.record_last_status() is
  'Trigger on fleet.device_heartbeats: keeps fleet.device_last_status at the newest heartbeat of each device, records there when '
  'a device was heard from whose heartbeats are older, and records heartbeats of past days in fleet.late_arrivals.';
--! EndIncluded status/record_last_status.sql
--! Included status/heal_last_status.sql
-- Starts from the devices, with one index probe for each device and partition. A scan would read all heartbeats of the day.
create or replace function fleet.heal_last_status(
  p_window interval,
  p_max_rows integer,
  out checked bigint,
  out updated bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_chunk constant integer := 10000;
  v_since timestamptz := now() - p_window;
  v_bound timestamptz := now() + (select s.max_future from fleet.settings s);
  v_behind bigint[];
  v_chunk bigint[];
  v_beats fleet.device_heartbeats[];
  v_rows bigint;
  v_after bigint;
  v_last bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('fleet.reconcile', 0)) then
    raise exception using
      errcode = 'FL003',
      message = 'another session is reconciling last status',
      hint = 'Wait until it ends. If it is stuck: select * from fleet.force_unlock(''reconcile'');';
  end if;
  -- A run that reached its limit left the devices after the last one to the next run. So devices that fall behind again and again
  -- cannot keep others from their turn.
  select position into v_after from fleet.cursors where cursor_name = 'reconcile';
  with newest as materialized (
    select d.device_id, h.ts, ls.last_ts,
      coalesce(ls.last_ts > v_bound or ls.last_received_at > v_bound, false) as is_ahead
    from fleet.devices d
    left join fleet.device_last_status ls on ls.device_id = d.device_id
    left join lateral (
      select b.ts
      from fleet.device_heartbeats b
      where b.device_id = d.device_id and b.ts >= v_since and b.ts <= v_bound
      order by b.ts desc
      limit 1
    ) h on true
  ),
  behind as (
    select n.device_id
    from newest n
    where n.is_ahead or n.ts is not null and (n.last_ts is null or n.last_ts < n.ts)
    order by n.device_id <= coalesce(v_after, 0), n.device_id
    limit p_max_rows
  )
  select (select count(*) from newest), array_agg(b.device_id order by b.device_id),
    (
      select b.device_id from behind b order by b.device_id <= coalesce(v_after, 0) desc, b.device_id desc limit 1
    )
  into checked, v_behind, v_last
  from behind b;

  updated := 0;
  for v_first in 1..coalesce(cardinality(v_behind), 0) by c_chunk loop
    v_chunk := v_behind[v_first : v_first + c_chunk - 1];
    -- In the order in which ingest locks them. What is read afterwards includes what arrived until then.
    perform from fleet.device_last_status ls where ls.device_id = any (v_chunk) order by ls.device_id for update;
    select array_agg(
      case
        when h.received_at > v_bound then jsonb_populate_record(h.beat, jsonb_build_object('received_at', h.ts))
        else h.beat
      end
    )
    into v_beats
    from unnest(v_chunk) c (device_id)
    left join fleet.device_last_status ls on ls.device_id = c.device_id
    cross join lateral (
      select b as beat, b.ts, b.received_at
      from fleet.device_heartbeats b
      where b.device_id = c.device_id and b.ts <= v_bound
        and (b.ts >= v_since or ls.last_ts > v_bound or ls.last_received_at > v_bound)
      order by b.ts desc
      limit 1
    ) h;
    updated := updated + fleet.upsert_last_status(v_beats, true) + (
      -- Where the upsert left the values alone, the times may still be wrong.
      select fleet.record_arrivals(array_agg(b.device_id), array_agg(b.received_at), array_agg(b.ts)) from unnest(v_beats) b
    );
    -- Everything that is known of these devices was written while the clock of Postgres ran ahead.
    update fleet.device_last_status ls
    set last_ts = null, last_received_at = q.received_at, status = case when q.received_at is null then 'ok' else ls.status end
    from unnest(v_chunk) u (device_id)
    cross join lateral (
      select max(k.received_at) as received_at
      from fleet.heartbeat_quarantine k
      where k.device_id = u.device_id and k.received_at <= v_bound
    ) q
    where ls.device_id = u.device_id and (ls.last_ts > v_bound or ls.last_received_at > v_bound);
    get diagnostics v_rows = row_count;
    updated := updated + v_rows;
    -- This may take minutes. fleet.mark_silent() removes the marks that are not needed.
    update fleet.device_last_status ls
    set is_silent = true
    where ls.device_id = any (v_chunk) and not ls.is_silent;
  end loop;
  insert into fleet.cursors as c (cursor_name, position)
  values ('reconcile', case when updated < p_max_rows then 0 else v_last end)
  on conflict (cursor_name) do update
    set position = excluded.position
    where c.position <> excluded.position;
end
$$;

comment on function fleet.heal_last_status(interval, integer) is
  'Moves last status forward to the newest stored heartbeat within a window, and back where it is in the future because the '
  'database''s clock ran ahead, for at most p_max_rows devices. Used by fleet.reconcile() and fleet.backfill_last_status().';
--! EndIncluded status/heal_last_status.sql
--! Included ingest/quarantine.sql
create or replace function fleet.quarantine(
  p_batch json,
  p_received_at timestamptz,
  p_device_ids bigint[],
  p_tss timestamptz[],
  p_reasons text[],
  p_results text[]
) returns text[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_results text[];
begin
  insert into fleet.heartbeat_quarantine (received_at, device_id, ts, reason, payload)
  select p_received_at, r.device_id, r.ts, r.reason, e.value::jsonb
  from (
    select u.device_id, u.ts, u.reason, min(u.item) as item,
      dense_rank() over (partition by u.device_id order by u.ts, u.reason) as nth
    from unnest(p_device_ids, p_tss, p_reasons) with ordinality as u (device_id, ts, reason, item)
    where u.reason is not null
    group by u.device_id, u.ts, u.reason
  ) r
  join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
  cross join fleet.settings s
  where r.nth + (select count(*) from fleet.heartbeat_quarantine q where q.device_id = r.device_id) <= s.quarantine_per_device
  order by r.device_id, r.ts, r.reason
  on conflict do nothing;

  select array_agg(
    coalesce(u.result, case when q.device_id is null then 'rejected' else 'quarantined' end)
    order by u.item
  )
  into v_results
  from unnest(p_device_ids, p_tss, p_reasons, p_results) with ordinality as u (device_id, ts, reason, result, item)
  left join fleet.heartbeat_quarantine q
    on u.result is null and q.device_id = u.device_id and q.ts = u.ts and q.reason = u.reason;

  return v_results;
end
$$;

comment on function fleet.quarantine(json, timestamptz, bigint[], timestamptz[], text[], text[]) is
  'Quarantines the refused items of a batch. Returns the results, with those of the refused items filled in: quarantined, or '
  'rejected if the quarantine of the device is full. Called by fleet.ingest_batch().';
--! EndIncluded ingest/quarantine.sql
--! Included ingest/record_others.sql
create or replace function fleet.record_others(
  p_batch json,
  p_received_at timestamptz,
  p_device_ids bigint[],
  p_tss timestamptz[],
  p_results text[]
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_lag interval := (select fleet.allowed_lag(s.offline_after, s.max_late) from fleet.settings s);
  v_refused bigint[];
  v_heard bigint[];
begin
  select array_agg(j.device_id) filter (where j.says_more), array_agg(j.device_id) filter (where not j.says_more)
  into v_refused, v_heard
  from (
    select u.device_id,
      -- What is refused because it is old says nothing new of a device that sent a heartbeat on time a moment ago.
      u.is_refused and (l.last_ts is null or l.last_ts < greatest(u.ts, p_received_at - v_lag)) as says_more
    from (
      select k.device_id, bool_and(k.result in ('quarantined', 'rejected')) as is_refused, max(k.ts) as ts
      from unnest(p_device_ids, p_tss, p_results) as k (device_id, ts, result)
      group by k.device_id
    ) u
    join (
      -- Does not wait: a row that another batch is writing is left to that batch. So batches do not deadlock.
      select l.device_id, l.last_ts
      from fleet.device_last_status l
      where l.device_id = any (p_device_ids)
        -- Most rows were written by the trigger a moment ago.
        and (l.last_received_at is null or l.last_received_at <> p_received_at)
      for update skip locked
    ) l using (device_id)
  ) j;
  if v_heard is not null then
    perform fleet.record_arrivals(v_heard, array_fill(p_received_at, array[cardinality(v_heard)]));
  end if;
  if v_refused is not null then
    perform fleet.upsert_last_status(array_agg(b.beat), false)
    from (
      select distinct on (u.device_id)
        jsonb_populate_record(
          null::fleet.device_heartbeats,
          fleet.reported_values(e.value::jsonb)
          || jsonb_build_object('device_id', u.device_id, 'ts', u.ts, 'received_at', p_received_at)
        ) as beat
      from unnest(p_device_ids, p_tss) with ordinality as u (device_id, ts, item)
      join json_array_elements(p_batch) with ordinality as e (value, item) using (item)
      where u.device_id = any (v_refused)
      order by u.device_id, u.ts desc
    ) b;
  end if;
end
$$;

comment on function fleet.record_others(json, timestamptz, bigint[], timestamptz[], text[]) is
  'Records in last status what the trigger on the heartbeats does not: that devices were heard from whose heartbeats were '
  'duplicates or refused. If all that a device sent was refused, last status takes the values of the newest of it, unless it has a '
  'newer heartbeat that was on time. Called by '
  'fleet.ingest_batch().';
--! EndIncluded ingest/record_others.sql
--! Included ingest/ingest_batch.sql
create or replace function fleet.ingest_batch(
  p_batch json,
  p_received_at timestamptz default now(),
  out results text[],
  out reasons text[],
  out tss timestamptz[]
) returns record
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off  -- measured: JIT compilation cut the rate from 140 to 4 batches a second
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_device_ids bigint[];
  v_stored_ids bigint[];
  v_stored_tss timestamptz[];
begin
  if p_received_at > now() then
    perform fleet.not_in_future(p_received_at);
  end if;
  select * into strict v_settings from fleet.settings;
  for v_try in 1..3 loop
    begin
      with given as materialized (
        select i.ordinality as item, i.device_id, t.ts,
          i.signal_dbm, i.battery_pct, i.unity_running, i.network_type, i.agent_version,
          fleet.stored_ip(i.ip, v_settings.store_ip) as ip, i.extra,
          case
            when t.ts < p_received_at - least(v_settings.max_late, v_settings.retention) then 'too_late'
            when t.ts > p_received_at + v_settings.max_future then 'in_future'
            -- Only if the insert found no partition for a row. Bounds are UTC midnights.
            when v_try > 1 and not exists (
              select from fleet.hb_partitions p
              where p.range_start <= t.ts and p.range_end > t.ts
                and p.state in ('active', 'restored') and p.relid is not null
            ) then 'no_partition'
          end as reason
        from rows from (
          json_to_recordset(p_batch) as (
            device_id bigint, ts timestamptz,
            signal_dbm smallint, battery_pct smallint, unity_running boolean, network_type text, agent_version text,
            ip inet, extra jsonb
          )
        ) with ordinality i
        cross join lateral (select coalesce(i.ts, p_received_at) as ts) t
      ),
      stored as (
        insert into fleet.device_heartbeats (
          ts, received_at, device_id,
          signal_dbm, battery_pct, unity_running, network_type, agent_version,
          ip, extra
        )
        select g.ts, p_received_at, g.device_id,
          g.signal_dbm, g.battery_pct, g.unity_running, g.network_type, g.agent_version,
          g.ip, g.extra
        from given g
        where g.reason is null
        -- The same order in every batch, so there is no deadlock. Of those in one bucket, the first item comes first.
        order by g.device_id, fleet.heartbeat_bucket(g.ts), g.item
        on conflict do nothing
        returning device_id, ts
      )
      select g.reasons, g.tss, g.device_ids, s.device_ids, s.tss
      into reasons, tss, v_device_ids, v_stored_ids, v_stored_tss
      from (
        select array_agg(o.reason) as reasons, array_agg(o.ts) as tss, array_agg(o.device_id) as device_ids
        from (select i.reason, i.ts, i.device_id from given i order by i.item) o
      ) g
      cross join (select array_agg(i.device_id) as device_ids, array_agg(i.ts) as tss from stored i) s;
      exit;
    exception when check_violation then
      -- A partition can be retired between the read of fleet.hb_partitions and the insert, too.
      if v_try = 3 then
        raise;
      end if;
      perform fleet.sync_partitions();
    end;
  end loop;

  if cardinality(v_stored_ids) = cardinality(tss) then
    reasons := null;
    return;
  end if;
  select array_agg(
    case when g.reason is null then case when s.ts is null or g.nth > 1 then 'duplicate' else 'stored' end end
    order by g.item
  )
  into results
  from (
    select u.*, row_number() over (partition by u.device_id, u.ts, u.reason is null order by u.item) as nth
    from unnest(v_device_ids, tss, reasons) with ordinality as u (device_id, ts, reason, item)
  ) g
  left join unnest(v_stored_ids, v_stored_tss) as s (device_id, ts) on s.device_id = g.device_id and s.ts = g.ts;

  -- After the heartbeats and last status, in every batch: all batches take locks in the same order, so they do not deadlock.
  if array_position(results, null) is not null then
    results := fleet.quarantine(p_batch, p_received_at, v_device_ids, tss, reasons, results);
    reasons := array(
      select case u.result when 'rejected' then 'quarantine_full' else u.reason end
      from unnest(results, reasons) with ordinality as u (result, reason, item)
      order by u.item
    );
  end if;
  perform fleet.record_others(p_batch, p_received_at, v_device_ids, tss, results);
end
$$;

comment on function fleet.ingest_batch(json, timestamptz) is
  'Stores a batch of heartbeats, as fleet.ingest() does, and answers with arrays in the order of the items. results and reasons '
  'are null if every heartbeat was stored, which is the usual case and costs nothing to say. Called by the server. '
  'Example: select * from fleet.ingest_batch(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded ingest/ingest_batch.sql
--! Included ingest/ingest.sql
create or replace function fleet.ingest(p_batch json, p_received_at timestamptz default now())
returns table (item integer, result text, reason text, ts timestamptz)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select u.item::integer, coalesce(u.result, 'stored'), u.reason, u.ts
  from fleet.ingest_batch(p_batch, p_received_at) b
  cross join lateral unnest(b.results, b.reasons, b.tss) with ordinality as u (result, reason, ts, item);
$$;

comment on function fleet.ingest(json, timestamptz) is
  'Stores a batch of heartbeats in one statement. The batch is a JSON array of objects with device_id, ts and the other columns of '
  'fleet.device_heartbeats except received_at. Answers each item in order: stored, duplicate (same device and 10-second bucket), '
  'quarantined (too_late, in_future, no_partition) or rejected (quarantine_full). '
  'Example: select * from fleet.ingest(''[{"device_id":1,"battery_pct":80}]'');';
--! EndIncluded ingest/ingest.sql
--! Included status/derive_status.sql
-- Written so that the views inline it; see fleet.expected_interval().
create or replace function fleet.derive_status(
  p_is_skewed boolean,
  p_last_received_at timestamptz,
  p_expected interval,
  p_offline_after interval,
  p_now timestamptz
) returns text
language sql
immutable
parallel safe
return case
  when p_last_received_at is null then 'new'
  -- Never less than two intervals, because one lost heartbeat is no outage.
  when p_now - p_last_received_at > greatest(p_offline_after, 2 * p_expected) then 'offline'
  when p_is_skewed then 'clock_skewed'
  when p_now - p_last_received_at > fleet.late_after(p_expected) then 'late'
  else 'online'
end;

comment on function fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz) is
  'The status of a device at this time, by when it was last heard from: new (never), offline (silent for longer than '
  'settings.offline_after and than two expected intervals), clock_skewed (heard from, but its clock is wrong), late (silent for '
  'longer than fleet.late_after()), or online. '
  'Example: select fleet.derive_status(false, now() - interval ''3 min'', ''60 s'', ''10 min'', now());';
--! EndIncluded status/derive_status.sql
--! Included status/marks_hold.sql
create or replace function fleet.marks_hold(p_age interval default null) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select m.marked_at <= now() and now() <= m.marked_at + m.base / 4
    and s.offline_after >= m.base and coalesce(p_age, s.offline_after) >= m.base
  from fleet.silence_marks m
  cross join fleet.settings s;
$$;

comment on function fleet.marks_hold(interval) is
  'Whether every device that has been silent for at least this long (default: settings.offline_after) has the mark '
  'device_last_status.is_silent. Devices that are asked for a heartbeat less than twice in that time are excepted. If false, '
  'read without the mark. See fleet.mark_silent().';
--! EndIncluded status/marks_hold.sql
--! Included status/device_state.view.sql
-- The setting is a subquery. If fleet.settings were joined, the planner would take its one row for hundreds, and all later
-- estimates would be wrong too.
create or replace view fleet.device_state as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    ls.status = 'clock_skewed', ls.last_received_at, i.expected, (select s.offline_after from fleet.settings s), now()
  ) as status,
  ls.last_ts,
  extract(epoch from now() - ls.last_received_at)::bigint as seconds_since,
  ls.last_received_at, i.asked as heartbeat_interval, d.enrolled_at, ls.is_silent, ls.status as said,
  i.expected as expected_interval,
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra
--! EndIncluded status/reported_fields.inc.sql
from fleet.devices d
left join fleet.device_last_status ls using (device_id)
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
where d.revoked_at is null;

comment on view fleet.device_state is
  'fleet.device_status plus the columns that indexes cover: is_silent (the mark of devices that may be offline) and said (the '
  'stored status). Also has the interval by which status is judged. Used by the other views and fleet.list_devices().';
--! EndIncluded status/device_state.view.sql
--! Included status/device_status.view.sql
create or replace view fleet.device_status as
select ls.device_id, ls.alias, ls.cohort, ls.status, ls.last_ts, ls.seconds_since, ls.last_received_at, ls.heartbeat_interval,
  ls.enrolled_at,
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra
--! EndIncluded status/reported_fields.inc.sql
from fleet.device_state ls;

comment on view fleet.device_status is
  'Each enrolled device: its status (new, online, late, offline or clock_skewed), when it was last heard from, and what it '
  'reported last. '
  'Example: select status, count(*) from fleet.device_status group by status;';
--! EndIncluded status/device_status.view.sql
--! Included status/device_status_legacy.view.sql
-- Partitions are read newest first until one has a row.
create or replace view fleet.device_status_legacy as
select d.device_id, d.alias, d.cohort,
  fleet.derive_status(
    q.received_at > coalesce(h.heard_at, '-infinity') and q.is_skewed
      or h.heard_at - h.ts > s.allowed_lag or a.heard_at - h.ts > greatest(s.allowed_lag, 2 * d.heartbeat_interval),
    greatest(h.heard_at, a.heard_at, r.heard_at), i.expected, s.offline_after, now()
  ) as status,
  h.ts as last_ts,
  extract(epoch from now() - greatest(h.heard_at, a.heard_at, r.heard_at))::bigint as seconds_since,
  greatest(h.heard_at, a.heard_at, r.heard_at) as last_received_at,
  i.asked as heartbeat_interval, d.enrolled_at,
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra
--! EndIncluded status/reported_fields.inc.sql
from fleet.devices d
left join fleet.cohorts c on c.cohort = d.cohort
cross join lateral (  -- as in fleet.device_state
  select
    greatest(d.heartbeat_interval, c.min_interval) as asked,
    fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, now()) as expected
) i
cross join lateral (
  select s.offline_after, s.max_future, s.max_late,
    fleet.allowed_lag(s.offline_after, s.max_late) as allowed_lag
  from fleet.settings s
  limit 1
) s
left join lateral (
  select b.*, case when b.received_at <= now() + s.max_future then b.received_at else b.ts end as heard_at
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts <= now() + s.max_future
  order by b.ts desc
  limit 1
) h on true
-- Heartbeats that arrived after the newest one. They matter only if the newest one alone does not make the device online.
left join lateral (
  select max(b.received_at) as heard_at
  from fleet.device_heartbeats b
  where b.device_id = d.device_id and b.ts < h.ts
    -- The hour more is for sessions in a zone whose clocks change.
    and b.ts >= now() - s.max_late - greatest(s.offline_after, 2 * i.expected) - interval '1 hour'
    and b.received_at <= now() + s.max_future
    and now() - least(h.ts, h.heard_at) > least(s.offline_after, s.allowed_lag, fleet.late_after(i.expected))
) a on true
left join lateral (
  select max(b.received_at) as heard_at
  from fleet.heartbeat_quarantine b
  where b.device_id = d.device_id and b.received_at <= now() + s.max_future
) r on true
-- The newest refused heartbeat that says more than the newest stored one; see fleet.record_others().
left join lateral (
  select b.received_at, b.payload,
    b.received_at - b.ts > s.allowed_lag or b.ts - b.received_at > s.max_future as is_skewed
  from fleet.heartbeat_quarantine b
  where b.device_id = d.device_id and b.received_at <= now() + s.max_future
    and (h.ts is null or h.ts < b.ts or b.received_at - h.ts > s.allowed_lag)
  order by b.received_at desc, b.ts desc
  limit 1
) q on true
-- What a refused heartbeat says, if it arrived after the newest stored one. Without the row type of device_heartbeats, so that its
-- columns can be changed.
cross join lateral (
  select
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra
--! EndIncluded status/reported_fields.inc.sql
  from (select h.*) ls
  where q.received_at is null or q.received_at <= h.heard_at
  union all
  select
--! Included status/reported_fields.inc.sql
ls.battery_pct, ls.network_type, ls.unity_running, ls.signal_dbm, ls.agent_version, ls.ip, ls.extra
--! EndIncluded status/reported_fields.inc.sql
  from jsonb_populate_record(null::fleet.device_last_status, fleet.reported_values(q.payload)) ls
  where q.received_at > coalesce(h.heard_at, '-infinity')
) ls
where d.revoked_at is null;

comment on view fleet.device_status_legacy is
  'The same as fleet.device_status, but read from the stored and the quarantined heartbeats and without '
  'fleet.device_last_status. What was neither stored nor quarantined, such as a duplicate, does not count here. Slow: for '
  'comparison, and the server''s fallback (READ_FROM_LAST_STATUS=false). '
  'Example: select * from fleet.device_status_legacy where device_id = 42;';
--! EndIncluded status/device_status_legacy.view.sql
--! Included status/devices_offline.view.sql
-- Only one of the two halves runs: the choice is made once, before the first row. In the first half, OFFSET 0 keeps the planner
-- from joining the whole fleet to a few devices, because it cannot guess how many are offline.
create or replace view fleet.devices_offline as
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip,
  d.last_received_at
from fleet.device_last_status ls
cross join lateral (select s.* from fleet.device_state s where s.device_id = ls.device_id offset 0) d
where fleet.marks_hold()
  and ls.is_silent and now() - ls.last_received_at > (select s.offline_after from fleet.settings s)
  and d.status = 'offline'
union all
select d.device_id, d.alias, d.cohort, d.last_ts, d.seconds_since, d.battery_pct, d.network_type, d.agent_version, d.ip,
  d.last_received_at
from fleet.device_state d
where not fleet.marks_hold() and d.status = 'offline'
order by last_received_at;

comment on view fleet.devices_offline is
  'Devices silent for longer than settings.offline_after, longest first. '
  'Example: select * from fleet.devices_offline where seconds_since > 720;';
--! EndIncluded status/devices_offline.view.sql
--! Included status/unity_down.view.sql
create or replace view fleet.unity_down as
select d.device_id, d.alias, d.cohort, d.status, d.last_ts, d.seconds_since, d.battery_pct, d.agent_version
from fleet.device_state d
where d.said <> 'ok' and d.unity_running is false and d.status in ('online', 'late', 'clock_skewed')
order by d.last_received_at desc;

comment on view fleet.unity_down is
  'Devices that are heard from (online, late or clock_skewed) and report that their Unity app is not running. '
  'Example: select alias from fleet.unity_down;';
--! EndIncluded status/unity_down.view.sql
--! Included status/list_devices.sql
-- One page by keyset. The query is built for each call: the best index depends on the arguments, and one plan for all arguments
-- would suit none of them.
create or replace function fleet.list_devices(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
-- Read an index in order, and stop at the end of the page. Too low an estimate must not make it read the whole table.
set enable_bitmapscan = off
set max_parallel_workers_per_gather = 0
set random_page_cost = 1
as $$
declare
  v_found text := 'select ls.device_id from fleet.device_last_status ls where ls.device_id > $3';
  v_filter text := ' where true';
begin
  if p_status is not null then
    v_filter := v_filter || ' and d.status = $1';
  end if;
  if p_older_than is not null then
    v_filter := v_filter || ' and d.last_received_at < now() - $2';
    v_found := v_found || ' and ls.last_received_at < now() - $2';
  end if;
  if p_cohort is not null then
    v_filter := v_filter || ' and d.cohort = $5';
  end if;
  if p_alias is not null then
    v_filter := v_filter || ' and d.alias = $6';
  end if;

  if p_alias is not null then
    v_found := null;  -- at most one device, which the alias finds faster than a mark
  elsif p_status = 'clock_skewed' then
    v_found := v_found || ' and ls.status = ''clock_skewed''';
  elsif p_status = 'offline' and fleet.marks_hold() then
    v_found := v_found || ' and ls.is_silent';
  elsif p_older_than is not null and fleet.marks_hold(p_older_than) then
    -- Devices with such long intervals may be silent for that long without a mark.
    if (select max(d.heartbeat_interval) from fleet.devices d) > p_older_than / 2 then
      v_found := v_found || ' and not ls.is_silent'
        ' and ls.device_id in (select d.device_id from fleet.devices d where d.heartbeat_interval > $2 / 2)'
        ' union all ' || v_found;
    end if;
    v_found := v_found || ' and ls.is_silent';
  else
    v_found := null;
  end if;

  if v_found is null then
    return query execute
      'select d.* from fleet.device_status d' || v_filter || ' and d.device_id > $3 order by d.device_id limit $4'
      using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
    return;
  end if;
  -- OFFSET 0 keeps the planner from joining the whole fleet to a few devices: it cannot guess how many have a status.
  return query execute 'select d.* from (' || v_found || ') found cross join lateral ('
    'select s.* from fleet.device_status s where s.device_id = found.device_id offset 0) d'
    || v_filter || ' order by found.device_id limit $4'
    using p_status, p_older_than, p_after, p_limit, p_cohort, p_alias;
end
$$;

comment on function fleet.list_devices(text, interval, bigint, integer, text, text) is
  'A page of fleet.device_status in order of device_id, after a given device_id. Filters by status, by time since it was '
  'heard from, by cohort and by alias. '
  'Example: select alias from fleet.list_devices(''offline'', ''12 minutes'');';
--! EndIncluded status/list_devices.sql
--! Included status/list_devices_legacy.sql
create or replace function fleet.list_devices_legacy(
  p_status text default null,
  p_older_than interval default null,
  p_after bigint default 0,
  p_limit integer default 100,
  p_cohort text default null,
  p_alias text default null
) returns setof fleet.device_status_legacy
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  select d.*
  from fleet.device_status_legacy d
  where d.device_id > p_after
    and (p_status is null or d.status = p_status)
    and (p_older_than is null or d.last_received_at < now() - p_older_than)
    and (p_cohort is null or d.cohort = p_cohort)
    and (p_alias is null or d.alias = p_alias)
  order by d.device_id
  limit p_limit;
$$;

comment on function fleet.list_devices_legacy(text, interval, bigint, integer, text, text) is
  'The same as fleet.list_devices(), over fleet.device_status_legacy. '
  'Example: select alias from fleet.list_devices_legacy(''offline'', ''12 minutes'');';
--! EndIncluded status/list_devices_legacy.sql
--! Included status/describe_clock.sql
create or replace function fleet.describe_clock(p_device_id bigint) returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with bounds as (
    select now() - least(s.max_late, s.retention) - interval '1 day' as oldest, now() + s.max_future as newest
    from fleet.settings s
  ),
  arrived as (
    (
      select h.ts, h.received_at
      from fleet.device_heartbeats h
      where h.device_id = p_device_id
        and h.ts >= (select b.oldest from bounds b) and h.ts <= (select b.newest from bounds b)
        and h.received_at <= (select b.newest from bounds b)
      order by h.received_at desc, h.ts desc
      limit 1
    )
    union all
    (
      select q.ts, q.received_at
      from fleet.heartbeat_quarantine q
      where q.device_id = p_device_id and isfinite(q.ts) and q.received_at <= (select b.newest from bounds b)
      order by q.received_at desc, q.ts desc
      limit 1
    )
  )
  select case when m.minutes < 0 then format('lags by %s', t.text) else format('is %s ahead', t.text) end
  from (
    select round(extract(epoch from a.ts - a.received_at) / 60) as minutes
    from arrived a
    order by a.received_at desc, a.ts desc
    limit 1
  ) m
  cross join lateral (
    select case
      when abs(m.minutes) < 120 then format('%s min', abs(m.minutes))
      when abs(m.minutes) < 2880 then format('%s h', round(abs(m.minutes) / 60))
      else format('%s days', round(abs(m.minutes) / 1440))
    end as text
  ) t
  where abs(m.minutes) > 1;
$$;

comment on function fleet.describe_clock(bigint) is
  'How wrong the clock of a device is, such as "lags by 6 h" or "is 2 h ahead", by the heartbeat that arrived last of those that '
  'were stored or quarantined; null if it is off by a minute or less. '
  'Example: select alias, fleet.describe_clock(device_id) from fleet.list_devices(''clock_skewed'');';
--! EndIncluded status/describe_clock.sql
--! Included availability/missed_beats.view.sql
create or replace view fleet.missed_beats as
select h.device_id, h.alias, h.cohort, h.status, h.last_ts, h.last_received_at as heard_at,
  h.expected_interval as heartbeat_interval, m.missed_beats
from fleet.device_state h
cross join lateral (
  select fleet.beats_missed(now() - coalesce(h.last_received_at, h.enrolled_at), h.expected_interval) as missed_beats
) m
-- The first condition is cheap, and leaves few rows for the second.
where now() - coalesce(h.last_received_at, h.enrolled_at) >= 1.5 * h.expected_interval
  and m.missed_beats > 0
order by m.missed_beats desc, h.device_id;

comment on view fleet.missed_beats is
  'Devices with missing heartbeats: how many each has missed in a row until now, since its last heartbeat, or since it was '
  'enrolled if it never sent one. Most first. '
  'Example: select alias, missed_beats from fleet.missed_beats where missed_beats >= 10;';
--! EndIncluded availability/missed_beats.view.sql
--! Included status/counts_hold.sql
create or replace function fleet.counts_hold(p_now timestamptz default now()) returns boolean
language sql
stable
parallel safe
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The job counts once a minute. One run may be missed, and each takes some seconds. All rows are of the same time.
  select coalesce(k.counted_at <= n.moment and n.moment - k.counted_at < interval '150 seconds', false)
  from fleet.not_in_future(p_now) n (moment)
  left join fleet.fleet_counts k on k.place = 1;
$$;

comment on function fleet.counts_hold(timestamptz) is
  'Whether fleet.fleet_counts is recent enough to be used at this time. If false, devices are counted when somebody asks. See '
  'fleet.count_fleet(). Example: select fleet.counts_hold();';
--! EndIncluded status/counts_hold.sql
--! Included status/may_be_ahead.sql
create or replace function fleet.may_be_ahead(p_now timestamptz default now()) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select not fleet.counts_hold(p_now) or exists (select from fleet.fleet_counts k where k.place = 1 and k.ahead > 0);
$$;

comment on function fleet.may_be_ahead(timestamptz) is
  'False if the counts of fleet.count_fleet() hold and say that no device was last heard from in the future, which happens after '
  'the clock of Postgres ran ahead. If true, look at the devices. Example: select fleet.may_be_ahead();';
--! EndIncluded status/may_be_ahead.sql
--! Included status/fleet_summary.view.sql
-- Only one of the two halves runs: the choice is made once, before the first row, and above the subquery, so that no parallel
-- workers are started for nothing. Devices are counted by status first, so that each device's status is derived once.
create or replace view fleet.fleet_summary as
select d.cohort, d.devices, d.online, d.late, d.offline, d.new, d.clock_skewed, d.unity_down, d.counted_at
from (
  select k.place, k.cohort, k.devices, k.online, k.late, k.offline, k.new, k.clock_skewed, k.unity_down, k.counted_at
  from fleet.fleet_counts k
  where fleet.counts_hold()
  union all
  select s.place, s.cohort, s.devices, s.online, s.late, s.offline, s.new, s.clock_skewed, s.unity_down, now()
  from (
    select row_number() over (order by grouping(c.cohort) desc, c.cohort) as place,
      coalesce(c.cohort, '(all)') as cohort,
      coalesce(sum(c.devices), 0)::bigint as devices,
      coalesce(sum(c.devices) filter (where c.status = 'online'), 0)::bigint as online,
      coalesce(sum(c.devices) filter (where c.status = 'late'), 0)::bigint as late,
      coalesce(sum(c.devices) filter (where c.status = 'offline'), 0)::bigint as offline,
      coalesce(sum(c.devices) filter (where c.status = 'new'), 0)::bigint as new,
      coalesce(sum(c.devices) filter (where c.status = 'clock_skewed'), 0)::bigint as clock_skewed,
      coalesce(sum(c.devices) filter (where c.is_unity_down and c.status in ('online', 'late', 'clock_skewed')), 0)::bigint
        as unity_down
    from (
      select v.cohort, v.status, v.unity_running is false as is_unity_down, count(*) as devices
      from fleet.device_status v
      group by v.cohort, v.status, v.unity_running is false
    ) c
    group by grouping sets ((c.cohort), ())
  ) s
  where not fleet.counts_hold()
) d
order by d.place;

comment on view fleet.fleet_summary is
  'Devices by status, for the whole fleet (all) and for each cohort. In a large fleet they are counted once a minute, at '
  'counted_at (fleet.count_fleet()). Example: select * from fleet.fleet_summary;';
--! EndIncluded status/fleet_summary.view.sql
--! Included status/sample_fleet.sql
create or replace function fleet.sample_fleet() returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  delete from fleet.fleet_samples s
  where s.sampled_at < now() - interval '8 days' or s.sampled_at > now();
  insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
  select date_bin('10 minutes', now(), '2000-01-01Z'), f.devices, f.online, f.late, f.offline, f.new, f.clock_skewed, f.unity_down
  from fleet.fleet_summary f
  where f.cohort = '(all)'
    -- Nine times out of ten the row is already there, and no device is counted.
    and not exists (select from fleet.fleet_samples s where s.sampled_at = date_bin('10 minutes', now(), '2000-01-01Z'))
  on conflict do nothing;
$$;

comment on function fleet.sample_fleet() is
  'Stores the counts of fleet.fleet_summary once every 10 minutes, for fleet.fleet_trend. Called every minute by '
  'fleet.mark_silent(). '
  'Example: select fleet.sample_fleet();';
--! EndIncluded status/sample_fleet.sql
--! Included silence/newest_received_at.sql
create or replace function fleet.newest_received_at(p_now timestamptz) returns timestamptz
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  select coalesce(
    (
      select k.newest_received_at
      from fleet.fleet_counts k
      cross join fleet.settings s
      where k.place = 1 and fleet.counts_hold(p_now) and p_now - k.newest_received_at <= s.ingest_gap
    ),
    (
      select max(ls.last_received_at)
      from fleet.device_last_status ls
      where ls.last_received_at <= greatest(p_now, clock_timestamp())  -- it may have arrived after this transaction began
    )
  );
$$;

comment on function fleet.newest_received_at(timestamptz) is
  'When the newest heartbeat before this time arrived. In a large fleet it is taken from fleet.fleet_counts if it shows that '
  'ingest is not down; then a newer one may have arrived since. Example: select fleet.newest_received_at(now());';
--! EndIncluded silence/newest_received_at.sql
--! Included silence/silence_window_start.sql
create or replace function fleet.silence_window_start(p_now timestamptz) returns timestamptz
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  -- Devices that fell silent while ingest was down have not been counted yet, so the window includes the gap once more.
  select least(case when p_now < w.gap_to + 2 * s.silence_window then w.gap_from end, p_now - s.silence_window)
  from fleet.settings s
  cross join fleet.silence_watch w;
$$;

comment on function fleet.silence_window_start(timestamptz) is
  'When the window begins in which fleet.fleet_silence counts devices at this time: settings.silence_window ago, or earlier '
  'after a gap in ingest. Example: select fleet.silence_window_start(now());';
--! EndIncluded silence/silence_window_start.sql
--! Included silence/silence_at.sql
create or replace function fleet.silence_at(p_now timestamptz)
returns table (
  cohort text, devices bigint, active bigint, gone_quiet bigint, share double precision, usual_share double precision,
  ratio double precision, is_alarming boolean, is_muted boolean, muted_reason text, window_start timestamptz,
  counted_at timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
  with ingest as materialized (
    select
      case
        when fleet.is_ingest_down(fleet.newest_received_at(p_now), fleet.not_in_future(p_now)) then 'ingest_down'
        when p_now < w.gap_to + s.silence_window or w.gap_from is not null and w.gap_to is null
          or fleet.postgres_started_at() > w.looked_at then 'ingest_resumed'
        when w.looked_at < p_now - s.ingest_gap then 'unwatched'
      end as muted_reason,
      coalesce(k.window_start, fleet.silence_window_start(p_now)) as window_start,
      coalesce(k.counted_at, p_now) as counted_at
    from fleet.settings s
    cross join fleet.silence_watch w
    left join fleet.fleet_counts k on k.place = 1 and fleet.counts_hold(p_now)
  ),
  -- How long each device is overdue. OFFSET 0 has it computed once.
  heard as (
    select d.cohort,
      p_now - ls.last_received_at - fleet.late_after(
        fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now)
      ) as overdue
    from fleet.devices d
    left join fleet.device_last_status ls using (device_id)
    left join fleet.cohorts c on c.cohort = d.cohort
    where d.revoked_at is null
    offset 0
  ),
  counted as (
    select h.cohort, count(*) as devices,
      count(*) filter (where h.overdue <= (select p_now - i.window_start from ingest i)) as active,
      count(*) filter (
        where h.overdue > interval '0' and h.overdue <= (select p_now - i.window_start from ingest i)
      ) as gone_quiet
    from heard h
    group by h.cohort
  ),
  summed as (
    select row_number() over (order by grouping(k.cohort) desc, k.cohort) as place, coalesce(k.cohort, '(all)') as cohort,
      coalesce(sum(k.devices), 0)::bigint as devices, coalesce(sum(k.active), 0)::bigint as active,
      coalesce(sum(k.gone_quiet), 0)::bigint as gone_quiet
    from counted k
    group by grouping sets ((k.cohort), ())
  ),
  -- Only one of the two halves runs.
  listed as (
    select k.place, k.cohort, k.devices, k.active, k.gone_quiet
    from fleet.fleet_counts k
    where fleet.counts_hold(p_now)
    union all
    select s.place, s.cohort, s.devices, s.active, s.gone_quiet
    from summed s
    where not fleet.counts_hold(p_now)
  )
  select m.cohort, m.devices, m.active, m.gone_quiet, r.share, u.usual_share, r.share / nullif(u.usual_share, 0),
    r.muted_reason is null and m.gone_quiet >= s.silence_min_devices and r.share >= s.silence_share
      and r.share >= s.silence_ratio * u.usual_share,
    r.muted_reason is not null, r.muted_reason, i.window_start, i.counted_at
  from listed m
  cross join ingest i
  cross join fleet.settings s
  left join fleet.silence_usual u on u.cohort = m.cohort
  cross join lateral (
    select m.gone_quiet / nullif(m.active, 0)::double precision as share,
      case
        when i.muted_reason is not null then i.muted_reason
        when m.active < s.silence_min_devices then 'few_devices'
        -- 144 samples are a day. Before that, what is usual at night is unknown.
        when u.usual_share is null or u.samples < 144 then 'few_samples'
      end as muted_reason
  ) r
  order by m.place;
$$;

comment on function fleet.silence_at(timestamptz) is
  'fleet.fleet_silence at a given time, from what is known now. Defined in docs/decisions/0017. Uses the counts of '
  'fleet.count_fleet() if they hold. Example: select * from fleet.silence_at(now());';
--! EndIncluded silence/silence_at.sql
--! Included silence/fleet_silence.view.sql
create or replace view fleet.fleet_silence as
select s.cohort, s.devices, s.active, s.gone_quiet, s.share, s.usual_share, s.ratio, s.is_alarming, s.is_muted, s.muted_reason,
  s.window_start, s.counted_at
from fleet.silence_at(now()) s;

comment on view fleet.fleet_silence is
  'For the whole fleet (all) and for each cohort: devices on the roster, devices active in the window (since window_start), '
  'active devices that have gone quiet in it, their share, the usual share at this time of day, and whether this is an alarm. '
  'While the alarm cannot be evaluated, muted_reason says why: ingest_down, ingest_resumed, unwatched, few_devices or '
  'few_samples. The devices of a large fleet are counted once a minute, at counted_at. '
  'Example: select * from fleet.fleet_silence where is_alarming;';
--! EndIncluded silence/fleet_silence.view.sql
--! Included silence/silence_metrics.sql
create or replace function fleet.silence_metrics()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select v.metric, jsonb_build_object('cohort', s.cohort), v.value
  from fleet.fleet_silence s
  cross join lateral (
    values
      ('cohort_devices', s.devices::double precision),
      ('cohort_active_devices', s.active),
      ('cohort_gone_quiet_devices', s.gone_quiet),
      ('cohort_gone_quiet_ratio', s.share),
      ('cohort_usual_quiet_ratio', s.usual_share),
      ('cohort_silence_alarm', s.is_alarming::integer),
      ('cohort_silence_muted', s.is_muted::integer)
  ) as v (metric, value)
  where v.value is not null;
$$;

comment on function fleet.silence_metrics() is
  'fleet.fleet_silence for /metrics. Separate from fleet.metric_values(), because it reads every device of a small fleet; a '
  'server calls it once a minute.';
--! EndIncluded silence/silence_metrics.sql
--! Included silence/watch_silence.sql
create or replace function fleet.watch_silence(p_now timestamptz default now()) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  c_every constant interval := interval '10 minutes';
  c_keep constant interval := interval '8 days';
  c_around constant interval := interval '90 minutes';
  v_watch fleet.silence_watch;
  v_settings fleet.settings;
  v_newest timestamptz;
  v_is_remembered boolean;
begin
  select * into strict v_settings from fleet.settings;
  select * into strict v_watch from fleet.silence_watch for update;
  v_newest := fleet.newest_received_at(p_now);

  -- While the devices of a gap are still to be counted, a further gap extends it rather than replacing it.
  v_is_remembered := v_watch.gap_to is null and v_watch.gap_from is not null
    or p_now < v_watch.gap_to + 2 * v_settings.silence_window;
  if v_watch.looked_at > p_now + v_settings.ingest_gap then
    -- The clock ran ahead, so nothing that was seen then counts.
    v_watch.gap_from := coalesce(v_newest, p_now);
    v_watch.gap_to := p_now;
    v_watch.sampled_at := '-infinity';
    delete from fleet.silence_samples s
    where s.sampled_at > p_now;
  elsif fleet.is_ingest_down(v_newest, p_now) then
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else v_newest end;
    v_watch.gap_to := null;
  elsif v_watch.gap_from is not null and v_watch.gap_to is null then
    v_watch.gap_to := p_now;
  elsif v_watch.looked_at < p_now - v_settings.ingest_gap or v_watch.looked_at < fleet.postgres_started_at() then
    -- Nothing is known about ingest since the last call.
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else coalesce(v_watch.newest_received_at, p_now) end;
    v_watch.gap_to := p_now;
  end if;
  update fleet.silence_watch
  set looked_at = p_now, newest_received_at = v_newest, gap_from = v_watch.gap_from, gap_to = v_watch.gap_to;

  if date_bin(c_every, p_now, '2000-01-01Z') <= v_watch.sampled_at then
    return;
  end if;
  -- A sample taken while the alarm is muted, or over a longer window, must not count as usual.
  insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
  select a.cohort, p_now, a.active, a.gone_quiet
  from fleet.silence_at(p_now) a
  where a.active > 0 and coalesce(a.muted_reason in ('few_devices', 'few_samples'), true)
    and a.window_start = a.counted_at - v_settings.silence_window
  on conflict do nothing;
  delete from fleet.silence_samples s
  where s.sampled_at < p_now - c_keep;

  delete from fleet.silence_usual;
  insert into fleet.silence_usual (cohort, usual_share, samples, days, computed_at)
  select a.cohort, case when k.days >= 3 then k.peaks[2] else a.highest end, a.samples, coalesce(k.days, 0), p_now
  from (
    select s.cohort, count(*) as samples,
      -- What is happening now does not count as usual.
      max(s.gone_quiet / s.active::double precision)
        filter (where s.sampled_at < p_now - greatest(c_around, 2 * v_settings.silence_window)) as highest
    from fleet.silence_samples s
    group by s.cohort
  ) a
  left join (
    select p.cohort, count(*) as days, array_agg(p.peak order by p.peak desc) as peaks
    from (
      select s.cohort, d.days_ago, max(s.gone_quiet / s.active::double precision) as peak
      from generate_series(1, 7) as d (days_ago)
      join fleet.silence_samples s
        on s.sampled_at between p_now - d.days_ago * interval '1 day' - c_around
          and p_now - d.days_ago * interval '1 day' + c_around
      group by s.cohort, d.days_ago
    ) p
    group by p.cohort
  ) k using (cohort);

  update fleet.silence_watch
  set sampled_at = p_now;
end
$$;

comment on function fleet.watch_silence(timestamptz) is
  'Checks whether heartbeats arrive, and every 10 minutes takes a sample of fleet.fleet_silence, from which it computes what is '
  'usual. Called each minute by fleet.mark_silent(). Example: select fleet.watch_silence();';
--! EndIncluded silence/watch_silence.sql
--! Included status/count_fleet.sql
-- A smaller fleet is counted in less than 50 ms when somebody asks, to the second.
create or replace function fleet.count_fleet(p_least integer default 50000) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
declare
  v_window_start timestamptz;
  v_bound timestamptz;
begin
  if (
    select count(*) from (select from fleet.devices d where d.revoked_at is null limit p_least) f
  ) < p_least then
    delete from fleet.fleet_counts;
    return;
  end if;

  select fleet.silence_window_start(now()), now() + s.max_future into v_window_start, v_bound from fleet.settings s;
  with counted as (
    select d.cohort, count(*) as devices,
      count(*) filter (where d.status = 'online') as online,
      count(*) filter (where d.status = 'late') as late,
      count(*) filter (where d.status = 'offline') as offline,
      count(*) filter (where d.status = 'new') as new,
      count(*) filter (where d.status = 'clock_skewed') as clock_skewed,
      count(*) filter (where d.is_unity_down and d.status in ('online', 'late', 'clock_skewed')) as unity_down,
      count(*) filter (where d.overdue <= now() - v_window_start) as active,
      count(*) filter (where d.overdue > interval '0' and d.overdue <= now() - v_window_start) as gone_quiet,
      max(d.last_received_at) filter (where d.last_received_at <= now()) as newest_received_at,
      count(*) filter (where d.newest > v_bound) as ahead
    from (
      -- OFFSET 0 has the status and the silence of a device computed once.
      select s.cohort, s.status, s.unity_running is false as is_unity_down, s.last_received_at,
        now() - s.last_received_at - fleet.late_after(s.expected_interval) as overdue,
        greatest(s.last_ts, s.last_received_at) as newest
      from fleet.device_state s
      offset 0
    ) d
    group by d.cohort
  )
  -- In order, so that two runs at the same time wait for each other. Rows are updated in place (HOT), because every row changes
  -- each minute.
  insert into fleet.fleet_counts as k (
    place, cohort, counted_at, devices, online, late, offline, new, clock_skewed, unity_down, window_start, active, gone_quiet,
    newest_received_at, ahead
  )
  select row_number() over (order by grouping(c.cohort) desc, c.cohort) as place, coalesce(c.cohort, '(all)'), now(),
    sum(c.devices), sum(c.online), sum(c.late), sum(c.offline), sum(c.new), sum(c.clock_skewed), sum(c.unity_down),
    v_window_start, sum(c.active), sum(c.gone_quiet), max(c.newest_received_at), sum(c.ahead)
  from counted c
  group by grouping sets ((c.cohort), ())
  order by place
  on conflict on constraint fleet_counts_pkey do update
    set cohort = excluded.cohort, counted_at = excluded.counted_at, devices = excluded.devices, online = excluded.online,
      late = excluded.late, offline = excluded.offline, new = excluded.new, clock_skewed = excluded.clock_skewed,
      unity_down = excluded.unity_down, window_start = excluded.window_start, active = excluded.active,
      gone_quiet = excluded.gone_quiet, newest_received_at = excluded.newest_received_at, ahead = excluded.ahead;
  delete from fleet.fleet_counts k
  where k.counted_at <> now();
end
$$;

comment on function fleet.count_fleet(integer) is
  'Counts a large fleet once, for all who read fleet.fleet_summary and fleet.fleet_silence until the next run. With fewer '
  'enrolled devices than p_least nothing is kept. Called each minute by fleet.mark_silent(). If it does not run, the views are '
  'still right, but slower. Example: select fleet.count_fleet();';
--! EndIncluded status/count_fleet.sql
--! Included status/mark_silent.sql
-- Devices become silent because time passes, so no heartbeat can mark them. They are marked early, at three quarters of the time
-- after which they are offline, so that between two runs no device is offline without the mark. Queries that use the mark
-- always compare with the clock again.
create or replace procedure fleet.mark_silent(p_max_rows integer default 50000, p_now timestamptz default now())
language plpgsql
as $$
declare
  c_batch constant integer := 5000;
  v_base interval;
  v_changes bigint;
  v_rows integer;
  v_left integer := p_max_rows;
begin
  perform fleet.end_overdue_readers();
  commit;
  select greatest(least(s.offline_after, interval '10 minutes'), interval '5 minutes'), m.changes
  into v_base, v_changes
  from fleet.settings s
  cross join fleet.silence_marks m;
  loop
    -- In device_id order, as in ingest. A batch is a short transaction, because a device that comes back waits for it.
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = true
    from (
      select l.device_id
      from fleet.device_last_status l
      where not l.is_silent and l.last_received_at < p_now - v_base * 0.75
        and l.last_received_at < p_now - 1.5 * (select d.heartbeat_interval from fleet.devices d where d.device_id = l.device_id)
      order by l.device_id
      limit least(c_batch, v_left)
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  -- At the limit the marks are incomplete, and reads continue without them. That suits a fleet that is mostly silent.
  if v_left > 0 then
    update fleet.silence_marks m
    set marked_at = p_now, base = v_base
    where m.changes = v_changes;
  end if;
  commit;

  -- Remove marks that no heartbeat removed, because they were set as a precaution.
  loop
    perform set_config('lock_timeout', '1s', true);
    update fleet.device_last_status ls
    set is_silent = false
    from (
      select l.device_id
      from fleet.device_last_status l
      where l.is_silent and (l.last_received_at is null or l.last_received_at >= p_now - interval '2 minutes')
      order by l.device_id
      limit least(c_batch, greatest(v_left, 0))
      for update of l
    ) found
    where ls.device_id = found.device_id;
    get diagnostics v_rows = row_count;
    v_left := v_left - v_rows;
    exit when v_rows < c_batch;
    commit;
  end loop;
  commit;

  perform fleet.watch_silence(p_now);
  commit;

  perform fleet.count_fleet();
  commit;

  perform fleet.sample_fleet();
end
$$;

comment on procedure fleet.mark_silent(integer, timestamptz) is
  'Sets device_last_status.is_silent for devices that have been silent for three quarters of the time after which they are '
  'offline, so that lists of offline devices need not look at the others. Run every minute by pg_cron. If it does not run, '
  'lists are still right, but slower. Also calls fleet.end_overdue_readers(), fleet.watch_silence(), fleet.count_fleet() and '
  'fleet.sample_fleet(). Example: call fleet.mark_silent();';
--! EndIncluded status/mark_silent.sql
--! Included checks/check_ingest.sql
create or replace function fleet.check_ingest(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  c_sample constant integer := 100;
  c_clocks constant integer := 3;
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_total bigint;
  v_start bigint;
  v_ahead bigint;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;

  check_name := 'triggers';
  -- What the migrations made has to be there; whatever else is disabled on the store's tables is named as well.
  select string_agg(distinct format('%s on %s', f.name, f.relation), ', '),
    concat_ws(
      e'\n',
      case when bool_or(f.is_internal) then '-- as superuser' else '-- as fleet_owner' end,
      string_agg(distinct f.command, e'\n'),
      -- While they were off, last status was not kept, the guard learned nothing, and token changes were not recorded.
      case when bool_or(f.name = 'device_heartbeats_record_last_status') then 'select fleet.backfill_last_status(1);' end,
      case
        when bool_or(f.name = 'hb_partitions_protect') then 'update fleet.hb_partitions set partition_name = partition_name;'
      end,
      case when bool_or(f.name like '%\_token\_change') then '-- then restart each server: it missed changed tokens' end
    )
  into v_names, v_commands
  from (
    select r.relation, r.trigger_name as name, r.definition || ';' as command, false as is_internal
    from fleet.recorded_triggers r
    where not exists (
      select from pg_trigger g where g.tgrelid = to_regclass(r.relation) and g.tgname = r.trigger_name
    )
    union all
    select g.tgrelid::regclass::text, case when g.tgisinternal then 'a foreign key' else g.tgname::text end,
      format(
        'alter table %s enable trigger %s;',
        g.tgrelid::regclass, case when g.tgisinternal then 'all' else quote_ident(g.tgname) end
      ),
      g.tgisinternal
    from pg_trigger g
    join pg_class c on c.oid = g.tgrelid
    where c.relnamespace = 'fleet'::regnamespace and g.tgenabled not in ('O', 'A')
  ) f;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('disabled or missing: ' || v_names, 'all are on');
  remedy := case when v_names is not null then v_commands end;
  return next;

  check_name := 'last_status';
  select floor(random() * greatest(coalesce(max(d.device_id), 0) - c_sample, 0)) into v_start from fleet.devices d;
  -- One statement stores a heartbeat and updates last status, so any difference is drift.
  select count(*) filter (where ls.last_ts is null or ls.last_ts < h.ts), count(*) into v_count, v_total
  from (
    select s.device_id
    from fleet.devices s
    where s.device_id > v_start
    order by s.device_id
    limit c_sample
  ) d
  left join fleet.device_last_status ls on ls.device_id = d.device_id
  cross join lateral (
    select b.ts
    from fleet.device_heartbeats b
    where b.device_id = d.device_id and b.ts >= p_now - interval '1 day' and b.ts <= p_now + v_settings.max_future
    order by b.ts desc
    limit 1
  ) h;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := format('last status is behind the newest heartbeat for %s of %s devices in the sample', v_count, v_total);
  select count(*), min(ls.device_id) into v_ahead, v_start
  from fleet.device_last_status ls
  where greatest(ls.last_ts, ls.last_received_at) > p_now + v_settings.max_future and fleet.may_be_ahead(p_now);
  if v_ahead > 0 then
    status := 'warn';
    detail := format(
      '%s; %s devices were last heard from in the future, such as device %s, because the clock of Postgres ran ahead',
      detail, v_ahead, v_start
    );
  end if;
  remedy := case when status <> 'ok' then 'select fleet.backfill_last_status(1);' end;
  return next;

  check_name := 'quarantine';
  select sum(r.n), string_agg(format('%s %s', r.n, r.reason), ', ' order by r.reason),
    string_agg(
      case r.reason
        when 'no_partition' then format('select fleet.create_partitions(%L, %L);', r.first::date, r.last::date)
        -- Heartbeats beyond the retention are never stored.
        when 'too_late' then format(
          'update fleet.settings set max_late = %L;', least(make_interval(days => r.late_days), v_settings.retention)
        )
        else 'select device_id, max(ts - received_at) as ahead from fleet.heartbeat_quarantine '
          'where reason = ''in_future'' group by device_id order by ahead desc limit 50;'
      end,
      e'\n' order by r.reason
    )
  into v_count, v_names, v_commands
  from (
    select q.reason, count(*) as n, min(q.ts) as first, max(q.ts) as last,
      least(ceil(max(extract(epoch from q.received_at - q.ts)) / 86400), 3650)::integer as late_days
    from fleet.heartbeat_quarantine q
    where q.received_at > p_now - interval '1 hour' and q.received_at <= greatest(p_now, clock_timestamp())
    group by q.reason
  ) r;
  status := case when coalesce(v_count, 0) < 100 then 'ok' else 'warn' end;
  detail := format('%s heartbeats quarantined in the last hour', coalesce(v_names, 'no'));
  remedy := case
    when status <> 'ok' then concat_ws(
      e'\n', '-- accepts such heartbeats from now on, and stores those in quarantine', v_commands,
      'select * from fleet.replay_quarantine();'
    )
  end;
  return next;

  check_name := 'quarantine_full';
  select count(*), string_agg(f.device_id::text, ', ' order by f.device_id) filter (where f.nth <= 10) into v_count, v_names
  from (
    select d.device_id, row_number() over (order by d.device_id) as nth
    from (
      (select ls.device_id from fleet.device_last_status ls where ls.status = 'clock_skewed' limit 1000)
      union
      select q.device_id from fleet.heartbeat_quarantine q where q.received_at > p_now - interval '1 hour'
    ) d
    where (
      select count(*)
      from (
        select from fleet.heartbeat_quarantine q where q.device_id = d.device_id limit v_settings.quarantine_per_device
      ) k
    ) >= v_settings.quarantine_per_device
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case v_count
    when 0 then 'no device has reached its limit'
    else format(
      '%s devices have %s heartbeats in quarantine, and more are discarded: %s',
      v_count, v_settings.quarantine_per_device, v_names
    )
  end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- keeps more for each device; to see why they are refused: select * from fleet.heartbeat_quarantine',
      format(
        'update fleet.settings set quarantine_per_device = %s;',
        least(greatest(v_settings.quarantine_per_device, 500) * 2, 100000)
      )
    )
  end;
  return next;

  check_name := 'clocks';
  select f.clock_skewed, f.devices into v_count, v_total
  from fleet.fleet_summary f
  where f.cohort = '(all)';
  select string_agg(format('%s %s', coalesce(d.alias, 'device ' || d.device_id), d.clock), ', ' order by d.device_id)
  into v_names
  from (
    select s.device_id, s.alias, coalesce(fleet.describe_clock(s.device_id), 'was wrong') as clock
    from fleet.list_devices('clock_skewed', p_limit => c_clocks) s
  ) d;
  status := case when v_count > 0 and v_count * 100 >= v_total then 'warn' else 'ok' end;
  detail := format('the clocks of %s of %s devices are wrong%s', v_count, v_total, ': ' || v_names)
    || case when v_count > c_clocks then ', …' else '' end;
  remedy := case
    when status <> 'ok' then e'-- set the clocks of these devices; the next heartbeat of each clears this'
      '\nselect device_id, alias, cohort, fleet.describe_clock(device_id) as clock, last_received_at '
      'from fleet.list_devices(''clock_skewed'', p_limit => 50);'
  end;
  return next;
end
$$;

comment on function fleet.check_ingest(timestamptz) is
  'The part of fleet.check() about heartbeats: triggers, last status (of a sample of devices), quarantine and clocks.';
--! EndIncluded checks/check_ingest.sql
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
    when v_refused > 0 or v_devices > 0
      and v_devices * 100 >= (select f.devices from fleet.fleet_summary f where f.cohort = '(all)' limit 1)
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
--! Included checks/check_silence.sql
create or replace function fleet.check_silence(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_newest timestamptz;
  v_ahead bigint;
  v_names text;
  v_commands text;
  v_is_fleet boolean;
  v_muted text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'heartbeats';
  v_newest := fleet.newest_received_at(p_now);
  select count(*) into v_ahead
  from fleet.device_last_status ls
  where ls.last_received_at > (select p_now + s.max_future from fleet.settings s) and fleet.may_be_ahead(p_now);
  status := 'ok'; remedy := null;
  detail := coalesce(
    case when fleet.counts_hold(p_now) then 'one' else 'the last one' end
      || ' arrived ' || date_trunc('second', p_now - v_newest) || ' ago',
    'no heartbeat has arrived yet'
  );
  if v_ahead > 0 then
    detail := format(
      '%s; the clock of Postgres ran ahead: %s devices seem to have been heard from in the future',
      case when v_newest is null then 'when the last one arrived is unknown' else detail end, v_ahead
    );
    status := case when v_newest is null then 'warn' else 'ok' end;
    remedy := case when v_newest is null then 'select fleet.backfill_last_status(1);' end;
  end if;
  if fleet.is_ingest_down(v_newest, p_now) then
    status := 'fail';
    detail := format(
      'no device was heard from for %s; the cause is the servers, the proxy in front of them, or the network',
      date_trunc('second', p_now - v_newest)
    );
    remedy := e'-- is a server connected? If not, start one (npm run server). If so, see RUNBOOK.md, "Heartbeats are refused"\n'
      'select usename, application_name, state, count(*) from pg_stat_activity where usename like ''fleet%'' '
      'group by 1, 2, 3 order by 1, 2, 3;';
  end if;
  return next;

  check_name := 'silent_cohorts';
  select
    string_agg(
      format(
        '%s: %s of %s devices since %s, usually %s %%',
        a.cohort, a.gone_quiet, a.active, to_char(a.window_start, 'HH24:MI'), round((100 * a.usual_share)::numeric)
      ),
      '; ' order by a.place
    ) filter (where a.is_alarming),
    string_agg(
      format(
        'select device_id, alias, last_ts, network_type, agent_version, ip from fleet.device_status '
        'where %sstatus in (''late'', ''offline'') order by last_ts desc limit 50;',
        case when a.place > 1 then format('cohort = %L and ', a.cohort) end
      ),
      e'\n' order by a.place
    ) filter (where a.is_alarming),
    bool_or(a.is_alarming and a.place = 1),
    max(a.muted_reason) filter (where a.place = 1 and a.muted_reason in ('ingest_down', 'ingest_resumed', 'unwatched'))
  into v_names, v_commands, v_is_fleet, v_muted
  from (select l.*, row_number() over () as place from fleet.silence_at(p_now) l) a;
  status := case when v_names is null then 'ok' when v_is_fleet then 'fail' else 'warn' end;
  detail := coalesce(
    'gone quiet: ' || v_names,
    format('not evaluated: %s', v_muted),
    'no more devices have gone quiet than usual'
  );
  remedy := e'-- what do these devices share: a place, a network, a version? This clears when they send again\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_silence(timestamptz) is
  'The part of fleet.check() about silence: no heartbeat from any device, and cohorts in which more devices have gone quiet than '
  'usual.';
--! EndIncluded checks/check_silence.sql
--! Included jobs/job_history.sql
create or replace function fleet.job_history()
returns table (
  jobname text, schedule text, max_age interval, is_active boolean, last_start timestamptz, last_status text, last_message text,
  last_success timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    return query
      select d.jobname, d.schedule, d.max_age, null::boolean, null::timestamptz, null::text, null::text, null::timestamptz
      from fleet.job_definitions() d;
    return;
  end if;
  -- A success in the future was written while the clock ran ahead. The history has no index on jobid, so it is read once for all
  -- jobs.
  return query execute $history$
    select d.jobname, d.schedule, d.max_age, j.active, h.start_time, h.status, h.return_message, r.last_success
    from fleet.job_definitions() d
    left join cron.job j on j.jobname = d.jobname and j.username = current_user and j.database = current_database()
    left join (
      select o.jobid, max(o.runid) as runid, max(o.start_time)
          filter (where o.status = 'succeeded' and o.start_time <= clock_timestamp()) as last_success
      from cron.job_run_details o
      group by o.jobid
    ) r on r.jobid = j.jobid
    left join cron.job_run_details h on h.runid = r.runid
  $history$;
end
$$;

comment on function fleet.job_history() is
  'Each expected pg_cron job with its last run and last success, which are null if it is not scheduled in this database.';
--! EndIncluded jobs/job_history.sql
--! Included jobs/scheduler_ages.sql
-- Does not use fleet.job_history(): it reads the whole history for the last success of each job, which is too much for a scrape.
create or replace function fleet.scheduler_ages()
returns table (jobname text, age interval)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_setup timestamptz := (select min(p.created_at) from fleet.hb_partitions p);
  v_known text[] := array[]::text[];
begin
  if exists (select from pg_extension where extname = 'pg_cron') then
    for jobname, age in execute $jobs$
      select j.jobname, now() - greatest(d.start_time, fleet.postgres_started_at())
      from cron.job j
      cross join lateral (
        select h.start_time
        from cron.job_run_details h
        where h.jobid = j.jobid and h.start_time <= now()  -- a later one was written while the clock ran ahead
        order by h.runid desc
        limit 1
      ) d
      where j.jobname like 'fleet-%' and j.username = current_user and d.start_time is not null
    $jobs$ loop
      v_known := v_known || jobname;
      return next;
    end loop;
  end if;
  -- If pg_cron is in another database, or lost a job or its history, the events of the jobs give their ages. These jobs have been
  -- there since setup, so one that never ran is as old as the store.
  return query
    select w.jobname, now() - coalesce(
      case when l.at is not null then greatest(l.at, fleet.postgres_started_at()) end,
      v_setup
    )
    from (
      values
        ('fleet-maintain', 'maintain.start'), ('fleet-nightly', 'nightly.start'), ('fleet-reconcile', 'reconciliation.completed')
    ) as w (jobname, event)
    cross join lateral (select max(e.at) as at from fleet.events e where e.event = w.event and e.at <= now()) l
    where w.jobname <> all (v_known);
end
$$;

comment on function fleet.scheduler_ages() is
  'How long ago each job of the store began, or Postgres started if that was later. If maintain, nightly or reconcile has never '
  'begun, the time since setup. For /metrics.';
--! EndIncluded jobs/scheduler_ages.sql
--! Included jobs/is_night_missed.sql
create or replace function fleet.is_night_missed(p_now timestamptz default now()) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.not_in_future(p_now);
  return not exists (
      select from fleet.events e
      where e.event = 'nightly.start' and e.at > p_now - interval '25 hours'
        and e.at <= clock_timestamp()  -- the clock may have run ahead
    )
    -- In a new store the first night is still to come.
    and exists (select from fleet.hb_partitions p where p.created_at <= p_now - interval '25 hours');
end
$$;

comment on function fleet.is_night_missed(timestamptz) is
  'True if fleet.nightly() has not begun for 25 hours. fleet.maintain() then runs it.';
--! EndIncluded jobs/is_night_missed.sql
--! Included metrics/metric_values.sql
create or replace function fleet.metric_values()
returns table (metric text, labels jsonb, value double precision)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select c.counter, '{}'::jsonb, c.total::double precision
  from fleet.counters c
  union all
  select 'partition_premake_runway_days', '{}',
    greatest(0, extract(epoch from coalesce(max(p.range_end), now()) - now()) / 86400)::double precision
  from fleet.hb_partitions p
  where p.relid is not null and exists (
    select from pg_inherits i where i.inhrelid = fleet.table_of(p) and i.inhparent = 'fleet.device_heartbeats'::regclass
  )
  union all
  select 'retention_lag_days', '{}',
    greatest(0, coalesce(max(extract(epoch from now() - s.retention - p.range_end)), 0) / 86400)::double precision
  from fleet.settings s
  left join fleet.hb_partitions p on p.state = 'active' and p.held_reason is null
    and p.range_end <= coalesce((select min(h.since) from fleet.import_holds() h), 'infinity')
  union all
  select 'archive_backlog_partitions', '{}', count(*)::double precision
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving', 'archive_failed')
  union all
  select 'archiver_heartbeat_age_seconds', '{}', extract(epoch from now() - max(a.last_seen_at))::double precision
  from fleet.archivers a
  where a.last_seen_at <= clock_timestamp()  -- the clock may have run ahead
  having count(*) > 0
  union all
  select 'scheduler_last_run_age_seconds', jsonb_build_object('job', g.jobname),
    greatest(0, extract(epoch from g.age))::double precision
  from fleet.scheduler_ages() g
  union all
  select v.metric, jsonb_build_object('state', s.state), v.value
  from (
    select p.state, count(*)::double precision as partitions,
      coalesce(sum(p.row_count), 0)::double precision as rows,
      coalesce(sum(p.bytes_size) filter (where p.relid is not null), 0)::double precision as bytes
    from fleet.hb_partitions p
    group by p.state
  ) s
  cross join lateral (
    values ('partitions', s.partitions), ('partition_rows', s.rows), ('partition_bytes', s.bytes)
  ) as v (metric, value)
  union all
  select 'archive_bytes', '{}', coalesce(sum(p.archive_bytes), 0)::double precision
  from fleet.hb_partitions p
  where p.proven_at is not null
  union all
  select v.metric, jsonb_build_object('slo', s.slo), v.value::double precision
  from fleet.slo s
  cross join lateral (
    values
      ('slo_good', s.good::numeric), ('slo_bad', s.bad::numeric), ('slo_target_ratio', s.target),
      ('slo_error_ratio', s.ratio), ('slo_budget_left_ratio', s.budget_left)
  ) as v (metric, value)
  where v.value is not null
  union all
  select m.metric, m.labels, m.value
  from fleet.postgres_metrics() m;
$$;

comment on function fleet.metric_values() is
  'The metrics that come from the database, for /metrics: totals, ages and error budgets. One row for each metric and label set; '
  'fleet.metric_definitions() describes them.';
--! EndIncluded metrics/metric_values.sql
--! Included checks/check_partitions.sql
create or replace function fleet.check_partitions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_today date := p_now::date;
  v_ahead integer;
  v_names text;
  v_commands text;
  v_attach text;
  v_count bigint;
  v_catalog text := left(fleet_guard.seal(0), -1);  -- read once, not for each row
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  -- A table that was detached by hand is attached again with its rows. A new partition would be empty.
  select e'-- as fleet_owner\n' || string_agg(
    format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L);',
      c.oid::regclass, p.range_start, p.range_end
    ),
    e'\n' order by p.range_start
  )
  into v_attach
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where p.state in ('active', 'restored') and not exists (select from pg_inherits i where i.inhrelid = c.oid);

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= p_now and a.range_end > p_now) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('there is no partition for %s, so heartbeats are quarantined', v_today);
    remedy := coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today, v_today + v_settings.premake_days));
  end if;
  return next;

  check_name := 'partitions_ahead';
  select coalesce(min(d.day) - v_today - 1, 90) into v_ahead
  from (select v_today + n as day from generate_series(1, 90) as n) d
  where not exists (select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day);
  detail := format('partitions exist for the next %s days; the setting is %s', v_ahead, v_settings.premake_days);
  -- Between midnight and the hourly run there is one partition less.
  status := case when v_ahead >= greatest(v_settings.premake_days - 1, 1) then 'ok' when v_ahead >= 3 then 'warn' else 'fail' end;
  remedy := case
    when status <> 'ok' then
      coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today + 1, v_today + v_settings.premake_days))
  end;
  return next;

  check_name := 'partition_obstacles';
  select string_agg(c.relname, ', ' order by c.relname),
    string_agg(format('alter table fleet.%I rename to %I;', c.relname, left('stray_' || c.relname, 63)), e'\n' order by c.relname)
  into v_names, v_commands
  from pg_class c
  where c.relnamespace = 'fleet'::regnamespace
    and c.relkind not in ('i', 'I')
    and c.relname like 'device\_heartbeats\_p%'
    and not exists (select from pg_inherits i where i.inhrelid = c.oid)
    and c.oid <> all (array(select coalesce(fleet.table_of(p), 0) from fleet.hb_partitions p));
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('in the way of a partition of the same name: ' || v_names, 'nothing is in the way of a new partition');
  remedy := format(e'-- as superuser\n%s\ncall fleet.maintain();', v_commands);
  remedy := case when v_names is not null then remedy end;
  return next;

  check_name := 'partition_catalog';
  select string_agg(format('%s is %s', k.partition_name, k.fault), ', ' order by k.partition_name) into v_names
  from (
    select a.partition_name, 'attached but unknown to fleet.hb_partitions' as fault
    from fleet.attached_partitions() a
    where not exists (
      select from fleet.hb_partitions p
      where fleet.table_of(p) = a.relid and p.state in ('active', 'restored')
        and p.range_start = a.range_start and p.range_end = a.range_end
    )
    union all
    select p.partition_name, format('%s in fleet.hb_partitions but not attached', p.state)
    from fleet.hb_partitions p
    join pg_class c on c.oid = fleet.table_of(p)
    where p.state in ('active', 'restored')
      and not exists (select from fleet.attached_partitions() a where a.relid = c.oid)
  ) k;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'fleet.hb_partitions agrees with the catalog');
  remedy := case when v_names is not null then coalesce(v_attach, 'select fleet.sync_partitions();') end;
  return next;

  check_name := 'partition_gaps';
  select string_agg(format('%s to %s', g.gap_start::date, g.gap_end::date), ', ' order by g.gap_start),
    string_agg(
      format('select fleet.create_partitions(%L, %L);', g.gap_start::date, g.gap_end::date - 1), e'\n' order by g.gap_start
    )
  into v_names, v_commands
  from (
    select a.range_end as gap_start, lead(a.range_start) over (order by a.range_start) as gap_end
    from fleet.attached_partitions() a
  ) g
  where g.gap_end > g.gap_start
    -- The days between a held or restored day and the rest are in the archive.
    and g.gap_end > p_now - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'there is no gap between partitions');
  remedy := v_commands;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start),
    string_agg(
      case
        when p.relid_seal is distinct from v_catalog || p.relid then 'call fleet.maintain();'  -- also finds a renamed table
        when p.state in ('active', 'restored') then
          format('select fleet.create_partitions(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date)
        when p.state = 'archived' then format('select fleet.drop_partition(%L);', p.partition_name)
        else format('-- %s: only a backup of Postgres has its rows', p.partition_name)
      end,
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  left join pg_class c on c.oid = fleet.table_of(p)
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone without a proper drop: ' || v_names, 'every partition that is not dropped has its table');
  remedy := e'-- creates the days again, empty; for their heartbeats see RUNBOOK.md, "A table is gone"\n' || v_commands;
  return next;

  check_name := 'partition_oids';
  select count(*) into v_count
  from fleet.hb_partitions p
  where p.relid is not null and (p.relid_seal is distinct from v_catalog || p.relid or p.relid <> fleet.table_of(p));
  select v_count + count(*) into v_count
  from fleet.imports a
  where a.relid_seal is distinct from v_catalog || a.relid;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case v_count
    when 0 then 'every table is recorded with its oid in this cluster'
    else format(
      '%s tables are recorded with oids of another cluster, from a restored dump; until it is fixed, they are found by name',
      v_count
    )
  end;
  remedy := case when v_count > 0 then 'call fleet.maintain();' end;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start),
    string_agg(format('alter table %s rename to %I;', c.oid::regclass, p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has its original name');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it has a row', 'there is none');
  remedy := case
    when v_names is not null then format(e'-- as fleet_owner\nalter table fleet.device_heartbeats detach partition %s;', v_names)
  end;
  return next;

  check_name := 'partition_indexes';
  with fault as (
    select a.partition_name, a.range_start,
      not coalesce(bool_or(i.indisunique and i.indisvalid), false) as lacks_key,
      not coalesce(
        bool_or(i.indisvalid and not i.indisunique and pg_get_indexdef(i.indexrelid) like '%(device\_id, ts DESC)'), false
      ) as lacks_newest,
      string_agg(format('drop index concurrently %s;', i.indexrelid::regclass), e'\n')
        filter (where not i.indisvalid) as leftovers
    from fleet.attached_partitions() a
    left join pg_index i on i.indrelid = a.relid
    group by a.partition_name, a.range_start
  )
  select string_agg(f.partition_name, ', ' order by f.range_start),
    string_agg(
      concat_ws(
        e'\n',
        f.leftovers,
        -- Duplicates that were stored without the key prevent creating it.
        case when f.lacks_key then format(
          e'delete from fleet.%1$I a using fleet.%1$I b where a.device_id = b.device_id '
          'and fleet.heartbeat_bucket(a.ts) = fleet.heartbeat_bucket(b.ts) '
          'and (a.received_at, a.ctid) > (b.received_at, b.ctid);'
          '\ncreate unique index concurrently on fleet.%1$I %2$s;',
          f.partition_name,
          regexp_replace(pg_get_indexdef('fleet.device_heartbeats_template_dedupe_key'::regclass), '^.* USING btree ', '')
        ) end,
        case when f.lacks_newest then format(
          e'create index if not exists device_heartbeats_device_id_ts_idx on only fleet.device_heartbeats (device_id, ts desc);'
          '\ncreate index concurrently if not exists %2$I on fleet.%1$I (device_id, ts desc);'
          '\nalter index fleet.device_heartbeats_device_id_ts_idx attach partition fleet.%2$I;',
          f.partition_name, f.partition_name || '_device_id_ts_idx'
        ) end
      ),
      e'\n' order by f.range_start
    )
  into v_names, v_commands
  from fault f
  where f.lacks_key or f.lacks_newest;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('an index is missing on ' || v_names, 'every partition has both indexes');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan(null, p_now) r
  where r.action = 'retire' and r.range_end < p_now - v_settings.retention - interval '2 days';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'no partition is overdue to be retired');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'rollups';
  select string_agg(format('%s since %s', r.day, r.due_at), ', ' order by r.day),
    string_agg(distinct case r.action when 'roll_up' then 'call fleet.nightly();' else 'call fleet.maintain();' end, e'\n')
  into v_names, v_commands
  from fleet.rollup_plan(p_now) r
  where r.state in ('active', 'restored')
    and r.due_at < p_now - case r.action when 'roll_up' then interval '2 days' else interval '3 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('availability is not rolled up: ' || v_names, 'past days are rolled up, late heartbeats included');
  remedy := v_commands;
  return next;

  check_name := 'guard';
  status := 'ok'; detail := 'a partition without a proven archive cannot be dropped'; remedy := null;
  select string_agg(g.name, ', ' order by g.name),
    case
      when bool_or(e.evtname is null) then e'# in a shell, with DATABASE_URL of a superuser\nnpm run migrate'
      else e'-- as superuser\n' || string_agg(format('alter event trigger %I enable always;', g.name), e'\n' order by g.name)
    end
  into v_names, v_commands
  -- A test compares these and fleet_guard_columns, which check_columns() looks at, with what setup creates.
  from (values ('fleet_guard_drop'), ('fleet_guard_find')) as g (name)
  left join pg_event_trigger e on e.evtname = g.name
  where e.evtenabled is distinct from 'A';
  if v_names is not null then
    status := 'warn'; detail := 'event triggers that are missing or not ENABLE ALWAYS: ' || v_names; remedy := v_commands;
  end if;
  return next;
end
$$;

comment on function fleet.check_partitions(timestamptz) is
  'The part of fleet.check() about partitions: today''s, those ahead, gaps, names, indexes, retention, rollups and the guard.';
--! EndIncluded checks/check_partitions.sql
--! Included checks/check_archive.sql
create or replace function fleet.check_archive(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_age interval;
  v_silence interval;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  select p_now - max(a.last_seen_at) into v_silence
  from fleet.archivers a
  where a.last_seen_at <= greatest(p_now, clock_timestamp());  -- the clock may have run ahead

  check_name := 'archive_failed';
  select string_agg(format('%s: %s', p.partition_name, p.last_error), '; ' order by p.range_start),
    string_agg(format('select fleet.retry_archive(%L);', p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  where p.state = 'archive_failed';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'none');
  remedy := e'-- once the cause is fixed\n' || v_commands;
  return next;

  check_name := 'archive_backlog';
  select count(*), p_now - min(p.detached_at) into v_count, v_age
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving') and p.held_reason is null;
  status := case
    when v_count = 0 or v_age < interval '6 hours' then 'ok'
    when v_age < interval '2 days' then 'warn'
    else 'fail'
  end;
  detail := format('%s partitions are waiting%s', v_count, ', the oldest for ' || date_trunc('second', v_age));
  remedy := case
    when status = 'ok' then null
    when v_silence < interval '5 minutes' then 'select fleet.wake_archiver();'
    else e'# in a shell\nnpm run archiver -- --once'
  end;
  return next;

  check_name := 'archive_undropped';
  select string_agg(p.partition_name || coalesce(': ' || p.last_error, ''), ', ' order by p.range_start),
    string_agg(
      case
        -- Only a person can say which of the two is right.
        when p.last_error like '%differs from its archive%' then format(
          e'-- if the table is right:\nselect fleet.retry_archive(%1$L);\n'
            '-- if the archive is right:\n-- select fleet.accept_archive(%1$L, ''why'');',
          p.partition_name
        )
        else format('select fleet.drop_partition(%L);', p.partition_name)
      end, e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and (v_settings.proofs_needed = 1 or p.confirmed_at is not null)
    and p.proven_at + v_settings.archive_grace
      < p_now - case when p.last_error like '%differs from its archive%' then interval '0' else interval '6 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('archived but not dropped: ' || v_names, 'no archived partition is overdue to be dropped');
  remedy := v_commands;
  return next;

  check_name := 'archive_unconfirmed';
  select string_agg(p.partition_name, ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and v_settings.proofs_needed > 1 and p.confirmed_at is null
    and p.proven_at < p_now - interval '1 day';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(
    'archived but not confirmed by a second login: ' || v_names, 'no archive is waiting for a second login to confirm it'
  );
  remedy := case when v_names is not null then e'# in a shell, with VERIFIER_DATABASE_URL\nnpm run archive -- confirm' end;
  return next;

  check_name := 'archiver';
  status := case when v_silence < interval '5 minutes' then 'ok' when v_silence is null then 'warn' else 'fail' end;
  detail := coalesce('last seen ' || date_trunc('second', v_silence) || ' ago', 'never seen');
  remedy := case when status <> 'ok' then e'# in a shell; it keeps running\nnpm run archiver' end;
  return next;

  check_name := 'restores';
  select string_agg(format('%s: %s', i.partition_name, i.last_error), '; ' order by p.range_start),
    string_agg(
      format('select fleet.request_restore(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date),
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.restore_items i
  join fleet.hb_partitions p using (partition_name)
  where i.state = 'failed' and i.finished_at > p_now - interval '1 day'
    and not exists (
      select from fleet.restore_items l where l.partition_name = i.partition_name and l.request_id > i.request_id
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('failed: ' || v_names, 'none failed in the last day');
  remedy := e'-- once the cause is fixed; npm run archive -- verify shows it\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_archive(timestamptz) is
  'The part of fleet.check() about the archive: failures, backlog, the archiver and restores.';
--! EndIncluded checks/check_archive.sql
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
  fleet.ingest_batch(json, timestamptz),
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
  fleet.counts_hold(timestamptz),  -- called by the view fleet_summary
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.allowed_lag(interval, interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.describe_clock(bigint),
  fleet.heartbeat_bucket(timestamptz),
  -- Called by the view device_status_legacy.
  fleet.reported_values(jsonb),
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

-- Imports that are under way get the functions of this version.
select fleet.create_forward_function(i)
from fleet.imports i
where to_regprocedure(format('fleet.%I()', 'forward_' || i.relid)) is not null;
