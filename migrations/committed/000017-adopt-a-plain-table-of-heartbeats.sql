--! Previous: sha1:a4720c707367c6b2d166429c0c78814a5e2baf79
--! Hash: sha1:600d60be572ea740309c27ba6efe7bf272128f4a
--! Message: Adopt a plain table of heartbeats

-- The move of a plain table of heartbeats into this store; see docs/decisions/0018-adopting-a-plain-table.md.

create table fleet.adoptions (
  source text not null,
  relid oid not null,
  filenode oid,
  state text not null,
  steps text[] not null default '{}',
  step text,
  pass integer not null default 0,
  columns jsonb not null,
  unknown_devices text not null,
  oldest timestamptz not null,
  is_oldest_given boolean not null,
  forwards boolean not null,
  match_by text not null,
  store_ip text not null,
  next_block bigint,
  end_block bigint,
  batch_blocks integer,
  next_partition timestamptz,
  rows_read bigint not null default 0,
  rows_stored bigint not null default 0,
  rows_duplicate bigint not null default 0,
  rows_refused bigint not null default 0,
  rows_written_back bigint not null default 0,
  rows_not_written_back bigint not null default 0,
  verified_xid xid8,
  backend integer,
  step_started_at timestamptz,
  step_from bigint not null default 0,
  step_done bigint not null default 0,
  step_total bigint not null default 0,
  step_rows bigint not null default 0,
  started_by text not null default session_user,
  started_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  moved_at timestamptz,
  verified_at timestamptz,
  confirmed_at timestamptz,
  abandoned_at timestamptz,
  last_error text,
  constraint adoptions_pkey primary key (source),
  constraint adoptions_state_known check (state in ('moving', 'moved', 'verified', 'confirmed', 'abandoning', 'abandoned')),
  constraint adoptions_unknown_devices_known check (unknown_devices in ('refuse', 'enroll')),
  constraint adoptions_match_by_known check (match_by in ('device_id', 'alias', 'map')),
  constraint adoptions_verified_has_xid check (state <> 'verified' or verified_xid is not null)
);
comment on table fleet.adoptions is
  'Each plain table that is or was moved into fleet.device_heartbeats by fleet.adopt_table(), and how far that is. To be read in fleet.adoption_progress.';
comment on column fleet.adoptions.source is 'The table, with its schema, as in ''public.device_heartbeats''.';
comment on column fleet.adoptions.relid is 'oid of the table.';
comment on column fleet.adoptions.filenode is 'Its file when the step began: rewritten (VACUUM FULL, CLUSTER), it is read from the start.';
comment on column fleet.adoptions.state is 'moving, moved, verified, confirmed; or abandoning, abandoned. Changes only through functions.';
comment on column fleet.adoptions.steps is 'What is left to do, in order; none: nothing is under way.';
comment on column fleet.adoptions.step is 'The first of them, once it has begun.';
comment on column fleet.adoptions.pass is 'How often the table was read from its first block to its last, or is being.';
comment on column fleet.adoptions.columns is 'For each column of fleet.device_heartbeats the one it is taken from; null: none.';
comment on column fleet.adoptions.unknown_devices is 'refuse: rows of devices that are not enrolled stay where they are; enroll: the devices are enrolled.';
comment on column fleet.adoptions.oldest is 'A row older than this is refused as too_old: its clock was wrong.';
comment on column fleet.adoptions.is_oldest_given is 'Whether somebody chose oldest.';
comment on column fleet.adoptions.forwards is 'Whether a trigger passes on what is written into the table meanwhile.';
comment on column fleet.adoptions.match_by is 'What the table''s device ids are: device_id of fleet.devices, its alias, or keys of fleet.adoption_devices (map).';
comment on column fleet.adoptions.store_ip is 'fleet.settings.store_ip when it began, so that what was moved can still be compared after a change.';
comment on column fleet.adoptions.next_block is 'The cursor: first block of the table that the step has not read.';
comment on column fleet.adoptions.end_block is 'First block that the step does not read: the size of the table when it began.';
comment on column fleet.adoptions.batch_blocks is 'Blocks of the next batch, by the rows of the last one.';
comment on column fleet.adoptions.next_partition is 'The cursor of writing back: start of the last partition that was read.';
comment on column fleet.adoptions.rows_read is 'Rows read by this pass.';
comment on column fleet.adoptions.rows_stored is 'Rows that this pass stored.';
comment on column fleet.adoptions.rows_duplicate is 'Rows whose device and 10-second bucket had a heartbeat already; in a second pass also what the first one stored.';
comment on column fleet.adoptions.rows_refused is 'Rows that this pass left, see fleet.adoption_refusals.';
comment on column fleet.adoptions.rows_written_back is 'Heartbeats that fleet.abandon_adoption() wrote back into the table.';
comment on column fleet.adoptions.rows_not_written_back is 'Those that the table refused; why is in fleet.events.';
comment on column fleet.adoptions.verified_xid is 'Rows of transactions before this one were seen by the verification.';
comment on column fleet.adoptions.backend is 'The backend that works, or worked, on it.';
comment on column fleet.adoptions.step_started_at is 'When the step began, or was taken up again.';
comment on column fleet.adoptions.step_from is 'step_done at that moment.';
comment on column fleet.adoptions.step_done is 'How far the step is: in blocks, or rows when it verifies, or days, or partitions.';
comment on column fleet.adoptions.step_total is 'How far it has to go.';
comment on column fleet.adoptions.step_rows is 'Rows since step_started_at.';
comment on column fleet.adoptions.started_by is 'The login that began it.';
comment on column fleet.adoptions.started_at is 'When it began; heartbeats received since are written back when it is abandoned.';
comment on column fleet.adoptions.updated_at is 'When it last came a step further.';
comment on column fleet.adoptions.moved_at is 'When the last pass ended.';
comment on column fleet.adoptions.verified_at is 'When the last verification ended.';
comment on column fleet.adoptions.confirmed_at is 'When it was confirmed.';
comment on column fleet.adoptions.abandoned_at is 'When it was abandoned.';
comment on column fleet.adoptions.last_error is 'Why it stopped; null while it goes on.';

create table fleet.adoption_devices (
  source text not null,
  source_device text not null,
  device_id bigint not null,
  constraint adoption_devices_pkey primary key (source, source_device),
  constraint adoption_devices_device_id_fkey foreign key (device_id) references fleet.devices (device_id) on delete cascade
);
comment on table fleet.adoption_devices is
  'Which device of fleet.devices a table''s own device id stands for, where it is neither device_id nor alias. Filled in before fleet.adopt_table(); with rows here, ids that are not here are unknown.';
comment on column fleet.adoption_devices.source is 'The table, with its schema, as in ''public.device_heartbeats''.';
comment on column fleet.adoption_devices.source_device is 'The id in that table, as text.';
comment on column fleet.adoption_devices.device_id is 'The device that it is.';
create index adoption_devices_device_id_idx on fleet.adoption_devices (device_id);
comment on index fleet.adoption_devices_device_id_idx is 'For the foreign key.';

create table fleet.adoption_days (
  source text not null,
  day date not null,
  rows_found bigint not null default 0,
  rows_stored bigint not null default 0,
  rows_kept bigint,
  rows_duplicate bigint,
  rows_missing bigint,
  rows_changed bigint,
  source_checksum numeric,
  store_checksum numeric,
  checked_at timestamptz,
  constraint adoption_days_pkey primary key (source, day)
);
comment on table fleet.adoption_days is
  'The heartbeats of a table that is moved into the store, by UTC day: how many there are, how many were stored, and what fleet.verify_adoption() found. Example: select * from fleet.adoption_days where rows_missing + rows_changed > 0;';
comment on column fleet.adoption_days.source is 'The table.';
comment on column fleet.adoption_days.day is 'UTC day of ts.';
comment on column fleet.adoption_days.rows_found is 'Rows of that day that may be stored, when they were last counted.';
comment on column fleet.adoption_days.rows_stored is 'Rows of that day that the move stored, in all passes, without those that the trigger forwarded.';
comment on column fleet.adoption_days.rows_kept is 'Rows that are in the store with the same content.';
comment on column fleet.adoption_days.rows_duplicate is 'Rows whose device and bucket another row has.';
comment on column fleet.adoption_days.rows_missing is 'Rows that should be in the store and are not.';
comment on column fleet.adoption_days.rows_changed is 'Rows that are in the store with other content.';
comment on column fleet.adoption_days.source_checksum is 'Checksum, as fleet.content_checksum() makes it, of the table''s rows that were to be kept.';
comment on column fleet.adoption_days.store_checksum is 'The same of what the store has of them.';
comment on column fleet.adoption_days.checked_at is 'When this verification compared the day; null: not yet.';

create table fleet.adoption_refusals (
  source text not null,
  reason text not null,
  source_device text not null default '',
  rows bigint not null,
  first_ts timestamptz,
  last_ts timestamptz,
  constraint adoption_refusals_pkey primary key (source, reason, source_device),
  constraint adoption_refusals_reason_known check (
    reason in ('no_ts', 'too_old', 'in_future', 'unknown_device', 'retired_day', 'unreadable')
  )
);
comment on table fleet.adoption_refusals is
  'Rows of a table that were left in it, by reason, when they were last counted; fleet.refused_rows() shows them. Example: select * from fleet.adoption_refusals;';
comment on column fleet.adoption_refusals.source is 'The table.';
comment on column fleet.adoption_refusals.reason is
  'no_ts; too_old (see oldest of fleet.adoptions); in_future (further ahead of its arrival than max_future); unknown_device; retired_day (the day is in the archive: restore it first); unreadable (a value does not fit its type).';
comment on column fleet.adoption_refusals.source_device is 'Of unknown_device: the table''s id of the device.';
comment on column fleet.adoption_refusals.rows is 'How many.';
comment on column fleet.adoption_refusals.first_ts is 'The oldest of them.';
comment on column fleet.adoption_refusals.last_ts is 'The newest of them.';

create table fleet.adoption_ranges (
  source text not null,
  first_block bigint not null,
  last_block bigint not null,
  first_ts timestamptz,
  last_ts timestamptz,
  rows_refused bigint not null,
  constraint adoption_ranges_pkey primary key (source, first_block)
);
comment on table fleet.adoption_ranges is
  'Where in a table the days are, so that one day can be read without an index: like BRIN, made anew with each count.';
comment on column fleet.adoption_ranges.source is 'The table.';
comment on column fleet.adoption_ranges.first_block is 'First block of the range.';
comment on column fleet.adoption_ranges.last_block is 'First block after it.';
comment on column fleet.adoption_ranges.first_ts is 'Oldest ts in it that may be stored; null: none.';
comment on column fleet.adoption_ranges.last_ts is 'Newest ts in it that may be stored.';
comment on column fleet.adoption_ranges.rows_refused is 'Rows in it that were refused.';

create type fleet.source_row as (
  tid tid,
  source_device text,
  reason text,
  beat fleet.device_heartbeats
);
comment on type fleet.source_row is 'A row of a table that is moved into the store: where it is, and the heartbeat it becomes, or why not.';

--! Included functions/checksum_expression.sql
create or replace function fleet.checksum_expression(p_table regclass) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format(
    $f$('x' || left(md5(%s), 15))::bit(60)::bigint$f$,
    string_agg(
      format(
        case c.type
          when 'timestamp with time zone' then $f$coalesce((extract(epoch from %1$I) * 1000000)::bigint::text, '~')$f$
          when 'text' then $f$coalesce(octet_length(%1$I) || ':' || %1$I, '~')$f$
          when 'inet' then $f$coalesce(octet_length(abbrev(%1$I)) || ':' || abbrev(%1$I), '~')$f$
          else $f$coalesce(%1$I::text, '~')$f$
        end,
        c.name
      ),
      $f$ || '|' || $f$ order by c.position
    )
  )
  from fleet.archive_columns(p_table) c;
$$;

comment on function fleet.checksum_expression(regclass) is
  'The SQL expression for the checksum of one row, from its canonical form; see fleet.content_checksum().';
--! EndIncluded functions/checksum_expression.sql
--! Included functions/content_checksum.sql
-- Runs with the caller's rights and in the caller's snapshot: the archiver calls it beside its COPY.
create or replace function fleet.content_checksum(
  p_table regclass,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'select count(*), coalesce(sum(%s), 0), min(ts), max(ts) from %s', fleet.checksum_expression(p_table), p_table
  ) into row_count, content_checksum, min_ts, max_ts;
end
$$;

comment on function fleet.content_checksum(regclass) is
  'Rows of a partition, their checksum independent of order and format, and the oldest and newest ts. Example: select * from fleet.content_checksum(''fleet_detached.device_heartbeats_p2026_08_15'');';
--! EndIncluded functions/content_checksum.sql
--! Included functions/retired_ranges.sql
create or replace function fleet.retired_ranges() returns tstzmultirange
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(range_agg(tstzrange(p.range_start, p.range_end)), '{}')
  from fleet.hb_partitions p
  where p.state not in ('active', 'restored') and not (p.state = 'dropped' and p.row_count = 0);
$$;

comment on function fleet.retired_ranges() is
  'The days that were retired with rows: they come back by fleet.request_restore(), not as new partitions.';
--! EndIncluded functions/retired_ranges.sql
--! Included functions/create_partitions.sql
create or replace function fleet.create_partitions(p_from date, p_to date) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_known text[];
  v_taken tstzmultirange;
  v_width interval;
  v_starts timestamptz[];
begin
  if p_from is null or p_to is null or p_from > p_to or p_to - p_from > 4000 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot create partitions from %s to %s', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a first and a last day, in order, at most 4000 days apart: select fleet.create_partitions(''2026-08-01'', ''2026-08-31'').';
  end if;

  perform fleet.sync_partitions();
  v_known := array(select partition_name from fleet.hb_partitions where state in ('active', 'restored'));

  select range_agg(tstzrange(t.range_start, t.range_end)) into v_taken
  from (
    select a.range_start, a.range_end
    from fleet.attached_partitions() a
    union all
    -- A retired day is not made anew beside its archive: fleet.request_restore() brings it back.
    select lower(r), upper(r)
    from unnest(fleet.retired_ranges()) r
  ) t;

  for v_width, v_starts in
    select w.width, array_agg(distinct w.range_start order by w.range_start)
    from (
      select
        -- A month in which days have partitions of their own is filled up with days.
        case when m.is_free then interval '1 month' else interval '1 day' end as width,
        case when m.is_free then m.range_start else d.day end as range_start
      from generate_series(p_from::timestamptz, p_to::timestamptz, interval '1 day') as d (day)
      cross join fleet.settings s
      cross join lateral (
        select date_trunc('month', d.day) as range_start,
          s.cadence = 'monthly' and coalesce(
            not v_taken && tstzrange(date_trunc('month', d.day), date_trunc('month', d.day) + interval '1 month'), true
          ) as is_free
      ) m
      where coalesce(not v_taken @> d.day, true)
    ) w
    group by w.width
  loop
    perform fleet.ensure_partitions(v_starts, v_width);
  end loop;

  perform fleet.sync_partitions();
  return query
    select p.partition_name
    from fleet.hb_partitions p
    where p.state in ('active', 'restored') and p.partition_name <> all (v_known)
    order by p.range_start;
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Makes the partitions that are missing between two days, both included, and returns their names. Retired days are left to fleet.request_restore(). Example: select fleet.create_partitions(current_date, current_date + 30);';
--! EndIncluded functions/create_partitions.sql
--! Included functions/source_query.sql
-- What becomes of a row is said once, for the pass, the trigger, the verification and the list of the refused.
create or replace function fleet.source_query(a fleet.adoptions, p_from text, p_tid text) returns text
language sql
stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
  select format(
    $query$
      select c.tid, c.source_device,
        case
          when c.ts is null then 'no_ts'
          when c.ts < %1$L then 'too_old'
          -- By the clock of its time, where that is known.
          when c.ts > coalesce(c.received_at, now()) + s.max_future then 'in_future'
          when c.device_id is null then 'unknown_device'
          when p.retired @> c.ts then 'retired_day'
        end as reason,
        row(%2$s)::fleet.device_heartbeats as beat
      from (
        select %3$s as tid, r.%4$I::text as source_device, %5$s as device_id, %6$s
        from %7$s
        left join fleet.adoption_devices m on m.source = %8$L and m.source_device = r.%4$I::text
        left join fleet.devices d on %9$s
      ) c
      cross join fleet.settings s
      cross join fleet.retired_ranges() as p (retired)
    $query$,
    a.oldest,
    string_agg(
      case k.name
        -- Infinity has no canonical form.
        when 'received_at' then 'case when isfinite(c.received_at) then c.received_at else c.ts end'
        when 'ip' then case a.store_ip
          when 'full' then 'c.ip'
          when 'prefix' then 'network(set_masklen(c.ip, case family(c.ip) when 4 then 24 else 48 end))::inet'
          else 'null'
        end
        else format('c.%I', k.name)
      end,
      ', ' order by k.position
    ),
    p_tid,
    a.columns ->> 'device_id',
    case a.match_by when 'map' then 'm.device_id' else 'coalesce(m.device_id, d.device_id)' end,
    string_agg(
      coalesce('r.' || quote_ident(a.columns ->> k.name), 'null') || format('::%s as %I', k.type, k.name),
      ', ' order by k.position
    ) filter (where k.name <> 'device_id'),
    p_from,
    a.source,
    case a.match_by
      when 'map' then 'false'
      when 'alias' then format('d.alias = r.%I::text', a.columns ->> 'device_id')
      else format('d.device_id = r.%I', a.columns ->> 'device_id')
    end
  )
  from fleet.archive_columns('fleet.device_heartbeats') k;
$$;

comment on function fleet.source_query(fleet.adoptions, text, text) is
  'The query that makes rows of fleet.source_row from what p_from names as r: matched to devices, cast, and judged.';
--! EndIncluded functions/source_query.sql
--! Included functions/read_source.sql
-- Stable, and so of the caller's snapshot: what it reads is compared with the store in one statement.
create or replace function fleet.read_source(a fleet.adoptions, p_first bigint, p_last bigint, p_since xid default null)
returns setof fleet.source_row
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set jit = off
as $$
declare
  c_rows constant text := 'select array_agg(row(q.tid, q.source_device, q.reason, q.beat)::fleet.source_row) from (%s) q';
  v_first tid := format('(%s,0)', p_first)::tid;
  v_last tid := format('(%s,0)', p_last)::tid;
  v_middle bigint := (p_first + p_last) / 2;
  v_range text := format('%s r where r.ctid >= $1 and r.ctid < $2', a.source)
    || case when p_since is not null then format(' and age(r.xmin) <= age(%L::xid)', p_since) else '' end;
  v_all text := format(c_rows, fleet.source_query(a, format('(select r.*, r.ctid from %s) r', v_range), 'r.ctid'));
  v_one text := format(
    c_rows, fleet.source_query(a, format('(select r.*, r.ctid from %s r where r.ctid = $1) r', a.source), 'r.ctid')
  );
  v_rows fleet.source_row[];
  v_tid tid;
begin
  begin
    -- As a whole before the first row is returned: what a function has returned stays, also when it fails after it.
    execute v_all into v_rows using v_first, v_last;
    return query select * from unnest(v_rows);
    return;
  exception when data_exception then
    null;  -- a value that does not fit: looked for in halves, then row by row
  end;
  if v_middle > p_first then
    return query select * from fleet.read_source(a, p_first, v_middle, p_since);
    return query select * from fleet.read_source(a, v_middle, p_last, p_since);
    return;
  end if;
  for v_tid in execute 'select r.ctid from ' || v_range using v_first, v_last loop
    begin
      execute v_one into v_rows using v_tid;
    exception when data_exception then
      v_rows := array[row(v_tid, null, 'unreadable', null)::fleet.source_row];
    end;
    return query select * from unnest(v_rows);
  end loop;
end
$$;

comment on function fleet.read_source(fleet.adoptions, bigint, bigint, xid) is
  'The rows of a range of blocks of a table that is adopted, judged; p_since: only those written by that transaction or later.';
--! EndIncluded functions/read_source.sql
--! Included functions/get_adoption.sql
create or replace function fleet.get_adoption(p_source regclass) returns fleet.adoptions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions;
begin
  select f.* into a
  from fleet.adoptions f
  where f.relid = p_source
  for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('%s is not being adopted', coalesce(p_source::text, 'null')),
      hint = format('Those that are: select * from fleet.adoption_progress; to begin: call fleet.adopt_table(%L);', p_source::text);
  end if;
  return a;
end
$$;

comment on function fleet.get_adoption(regclass) is 'The adoption of a table, locked; an error when there is none.';
--! EndIncluded functions/get_adoption.sql
--! Included functions/lock_holders.sql
create or replace function fleet.lock_holders(p_lock text) returns setof integer
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select l.pid
  from pg_locks l
  where l.locktype = 'advisory' and l.granted and l.objsubid = 1
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('fleet.' || p_lock, 0);
$$;

comment on function fleet.lock_holders(text) is
  'The backend that holds the lock of maintenance, reconcile or adoption; none when nobody does. Example: select * from fleet.lock_holders(''maintenance'');';
--! EndIncluded functions/lock_holders.sql
--! Included functions/force_unlock.sql
-- With the rights of the caller: whom one may end is what pg_signal_backend says. (pg_advisory_unlock_all() would free
-- only the caller's own locks.)
create or replace function fleet.force_unlock(p_lock text default 'maintenance')
returns table (pid integer, usename text, running interval, query text, is_ended boolean)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if p_lock is null or p_lock not in ('maintenance', 'reconcile', 'adoption') then
    raise exception using
      errcode = 'FL422',
      message = format('there is no lock %s', coalesce(p_lock, 'null')),
      hint = 'The locks are maintenance, reconcile and adoption: select * from fleet.force_unlock(''maintenance'');';
  end if;
  return query
    select a.pid, a.usename::text, date_trunc('second', now() - a.query_start), a.query,
      -- Waits, so that whoever asked can begin at once.
      pg_terminate_backend(a.pid, 5000)
    from fleet.lock_holders(p_lock) h
    join pg_stat_activity a on a.pid = h
    where h <> pg_backend_pid();
end
$$;

comment on function fleet.force_unlock(text) is
  'Ends the backend that holds the lock of a stuck maintenance, reconcile or adoption, and says who it was; what it had not committed is undone, the next run goes on from there. Example: select * from fleet.force_unlock(''maintenance'');';
--! EndIncluded functions/force_unlock.sql
--! Included functions/take_adoption_lock.sql
create or replace function fleet.take_adoption_lock() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_holder integer := (select h from fleet.lock_holders('adoption') h limit 1);
begin
  -- A lock of the session: it has to outlive the transactions of the run. A run of this session that was cancelled may have left it.
  if v_holder is distinct from pg_backend_pid() and not pg_try_advisory_lock(hashtextextended('fleet.adoption', 0)) then
    raise exception using
      errcode = 'FL003',
      message = format('a table is being adopted already, in backend %s', coalesce(v_holder, (select h from fleet.lock_holders('adoption') h limit 1))),
      hint = 'See select * from fleet.adoption_progress. If it is stuck: select * from fleet.force_unlock(''adoption''); the next run goes on where it ended.';
  end if;
end
$$;

comment on function fleet.take_adoption_lock() is 'Takes the lock of adoptions for this session, or says who has it.';
--! EndIncluded functions/take_adoption_lock.sql
--! Included functions/describe_source.sql
-- All that can be wrong with a table is said here, before anything is changed.
create or replace function fleet.describe_source(
  p_source regclass,
  p_columns jsonb,
  p_unknown_devices text,
  p_oldest timestamptz,
  p_forward boolean
) returns fleet.adoptions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  a fleet.adoptions;
  v_class pg_class;
  v_schema name;
  v_fault text;
  v_hint text;
  v_target record;
  v_column text;
  v_type text;
  v_id_type text;
begin
  select * into v_class from pg_class c where c.oid = p_source;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no table %s', coalesce(p_source::text, 'null')),
      hint = 'Name the table with its schema: call fleet.adopt_table(''public.device_heartbeats'');';
  end if;
  v_schema := (select n.nspname from pg_namespace n where n.oid = v_class.relnamespace);
  a.source := format('%I.%I', v_schema, v_class.relname);
  a.relid := v_class.oid;
  a.store_ip := (select s.store_ip from fleet.settings s);
  a.unknown_devices := coalesce(p_unknown_devices, 'refuse');
  a.forwards := coalesce(p_forward, true);
  a.is_oldest_given := p_oldest is not null;
  a.oldest := coalesce(p_oldest, now() - interval '3650 days');

  v_fault := case
    when v_schema in ('fleet', 'fleet_detached', 'fleet_guard', 'partman', 'cron', 'pg_catalog', 'information_schema') then
      'it belongs to the store or to Postgres itself'
    when v_class.relkind = 'p' then 'it is partitioned'
    when v_class.relkind = 'f' then 'it is a foreign table'
    when v_class.relkind in ('v', 'm') then 'it is a view'
    when v_class.relkind <> 'r' then 'it is not a table'
    when v_class.relpersistence = 't' then 'it is a temporary table, which no other session sees'
    when v_class.relispartition then 'it is a partition of another table'
    when exists (select from pg_inherits i where p_source in (i.inhrelid, i.inhparent)) then 'it inherits, or is inherited from'
    when v_class.relrowsecurity then 'its row-level security may hide rows'
  end;
  if v_fault is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be adopted: %s', a.source, v_fault),
      hint = case
        when v_class.relrowsecurity then format('As its owner: alter table %s disable row level security;', a.source)
        else 'A plain table of heartbeats is adopted; copy the rows into one: create table public.device_heartbeats as select …;'
      end;
  end if;

  select string_agg(r.grant_, '; '), string_agg(r.right_, ', ')
  into v_hint, v_fault
  from (
    select format('grant usage on schema %I to %I', v_schema, current_user) as grant_,
      'USAGE on its schema' as right_
    where not has_schema_privilege(v_class.relnamespace, 'usage')
    union all
    select format('grant select, trigger on %s to %I', a.source, current_user), 'SELECT and TRIGGER on it'
    where not (has_table_privilege(p_source, 'select') and has_table_privilege(p_source, 'trigger'))
  ) r;
  if v_fault is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be adopted: role %s lacks %s', a.source, current_user, v_fault),
      hint = format('As its owner: %s;', v_hint);
  end if;

  select string_agg(k.key, ', ') into v_fault
  from jsonb_object_keys(case jsonb_typeof(p_columns) when 'object' then p_columns else '{}' end) as k (key)
  where k.key not in (select c.name from fleet.archive_columns('fleet.device_heartbeats') c);
  if v_fault is not null or jsonb_typeof(p_columns) <> 'object' then
    raise exception using
      errcode = 'FL422',
      message = case
        when v_fault is null then format('the columns of %s must be given as a JSON object, not as %s', a.source, p_columns)
        else format('fleet.device_heartbeats has no column %s to take from %s', v_fault, a.source)
      end,
      hint = 'Name for each column of fleet.device_heartbeats the one of your table, null for none: '
        'p_columns => ''{"battery_pct": "battery", "ip": null}''.';
  end if;

  a.columns := '{}';
  for v_target in select c.name, c.type from fleet.archive_columns('fleet.device_heartbeats') c order by c.position loop
    v_column := case when p_columns ? v_target.name then p_columns ->> v_target.name else v_target.name end;
    select format_type(t.atttypid, t.atttypmod) into v_type
    from pg_attribute t
    where t.attrelid = p_source and t.attname = v_column and t.attnum > 0 and not t.attisdropped;
    if not found and (v_target.name in ('ts', 'device_id') or p_columns ->> v_target.name is not null) then
      raise exception using
        errcode = 'FL422',
        message = format('%s cannot be adopted: it has no column %s for %s', a.source, coalesce(v_column, 'at all'), v_target.name),
        hint = format('Say which it is: p_columns => ''{"%s": "name"}''. Its columns: %s.', v_target.name, (
          select string_agg(t.attname, ', ' order by t.attnum)
          from pg_attribute t
          where t.attrelid = p_source and t.attnum > 0 and not t.attisdropped
        ));
    end if;
    a.columns := a.columns || jsonb_build_object(v_target.name, case when found then v_column end);
    if not found then
      continue;
    end if;
    if v_target.name = 'device_id' then
      v_id_type := v_type;
      continue;
    end if;
    begin
      execute format('select null::%s::%s', v_type, v_target.type);
    exception when cannot_coerce then
      raise exception using
        errcode = 'FL422',
        message = format(
          '%s cannot be adopted: column %s is %s, which does not become the %s of %s', a.source, v_column, v_type, v_target.type,
          v_target.name
        ),
        hint = format('Leave it out with p_columns => ''{"%s": null}'', or give the table a column of a fitting type.', v_target.name);
    end;
  end loop;

  if a.unknown_devices not in ('refuse', 'enroll') or not isfinite(a.oldest) or a.oldest > now() then
    raise exception using
      errcode = 'FL422',
      message = case
        when a.unknown_devices not in ('refuse', 'enroll') then format('unknown devices cannot be treated by %s', a.unknown_devices)
        else format('the oldest heartbeats to take cannot be of %s', a.oldest)
      end,
      hint = 'p_unknown_devices is refuse or enroll; p_oldest is a time in the past.';
  end if;
  a.match_by := case
    when exists (select from fleet.adoption_devices m where m.source = a.source) then 'map'
    when v_id_type in ('smallint', 'integer', 'bigint') then 'device_id'
    else 'alias'
  end;
  if pg_relation_size(p_source) = 0 then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be adopted: it is empty', a.source),
      hint = 'There is nothing to move; point the devices at the new server.';
  end if;
  return a;
end
$$;

comment on function fleet.describe_source(regclass, jsonb, text, timestamptz, boolean) is
  'How a table would be adopted: its columns, how its devices are matched. FL422 names what stands against it. Behind fleet.adopt_table() and fleet.adoption_plan().';
--! EndIncluded functions/describe_source.sql
--! Included functions/adoption_plan.sql
create or replace function fleet.adoption_plan(
  p_source regclass,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null
) returns table (item text, detail text, rows bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set jit = off
as $$
#variable_conflict use_column
declare
  c_blocks constant integer := 256;
  a fleet.adoptions := fleet.describe_source(p_source, p_columns, p_unknown_devices, p_oldest, true);
begin
  return query
    select 'column', format(
      '%s: %s', k.name,
      coalesce(
        t.attname || ', ' || format_type(t.atttypid, t.atttypmod),
        case k.name when 'received_at' then 'none, ts instead' else 'none, null' end
      ) || case when k.name = 'device_id' then case a.match_by
        when 'device_id' then ', the device_id of fleet.devices'
        when 'alias' then ', the alias in fleet.devices'
        else ', as fleet.adoption_devices says'
      end else '' end
    ), null::bigint
    from fleet.archive_columns('fleet.device_heartbeats') k
    left join pg_attribute t on t.attrelid = p_source and t.attname = a.columns ->> k.name
    order by k.position;
  return query
    with given as (
      select r.reason, (r.beat).ts as ts, r.source_device
      from generate_series(0, pg_relation_size(p_source) / current_setting('block_size')::bigint, c_blocks) as g (block)
      cross join lateral fleet.read_source(a, g.block, g.block + c_blocks) r
    ),
    days as materialized (
      select g.reason, g.ts::date as day, min(g.ts) as first_ts, max(g.ts) as last_ts, count(*) as rows,
        count(distinct g.source_device) filter (where g.reason = 'unknown_device') as devices
      from given g
      group by 1, 2
    )
    select case when d.reason is null then 'taken' when d.reason = 'unknown_device' and a.unknown_devices = 'enroll' then 'enrolled and taken' else 'refused: ' || d.reason end,
      format('%s to %s', min(d.first_ts), max(d.last_ts)), sum(d.rows)::bigint
    from days d
    group by d.reason
    union all
    select 'partitions', format('to be made, from %s to %s', min(m.day), max(m.day)), count(*)
    from (
      select w.day::date as day
      from (select min(d.day) as first_day, max(d.day) as last_day from days d where d.reason is null) s
      cross join generate_series(s.first_day, s.last_day, interval '1 day') as w (day)
      except
      select generate_series(p.range_start, p.range_end - interval '1 day', interval '1 day')::date
      from fleet.attached_partitions() p
    ) m
    where not fleet.retired_ranges() @> m.day::timestamptz
    having count(*) > 0;
end
$$;

comment on function fleet.adoption_plan(regclass, jsonb, text, timestamptz) is
  'The dry run of fleet.adopt_table(): which columns are taken, how many rows, which are refused and why, which partitions are made. Reads the whole table, changes nothing. Example: select * from fleet.adoption_plan(''public.device_heartbeats'');';
--! EndIncluded functions/adoption_plan.sql
--! Included functions/adoption_holds.sql
create or replace function fleet.adoption_holds() returns table (source text, since timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select a.source, min(d.day)::timestamptz
  from fleet.adoptions a
  join pg_class c on c.oid = a.relid
  join fleet.adoption_days d on d.source = a.source
  where a.state in ('moving', 'moved', 'verified', 'abandoning')
  group by a.source;
$$;

comment on function fleet.adoption_holds() is
  'Tables that are adopted and neither confirmed nor abandoned, with the first day of which they have rows: from there on no partition is retired, so that what was moved can be verified.';
--! EndIncluded functions/adoption_holds.sql
--! Included functions/retention_plan.sql
create or replace function fleet.retention_plan(p_retention interval default null, p_now timestamptz default now())
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, state text, row_count bigint, bytes_size bigint,
  action text, reason text
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select p.partition_name, p.range_start, p.range_end, p.state,
    coalesce(p.row_count, greatest(c.reltuples, 0)::bigint),
    pg_total_relation_size(p.relid),
    case
      when p.range_end > p_now - r.retention then 'keep'
      when p.held_reason is not null or p.state = 'restored' or h.source is not null then 'hold'
      else 'retire'
    end,
    case
      when p.range_end > p_now - r.retention and p.range_start > p_now then 'made ahead'
      when p.range_end > p_now - r.retention then format('not wholly older than %s', r.retention)
      when p.held_reason is not null then format('held: %s', p.held_reason)
      when h.source is not null then format('%s is being adopted; confirm or abandon that', h.source)
      when p.state = 'restored' then 'restored from the archive; release it with fleet.release_partition()'
      else format('all of it is older than %s', r.retention)
    end
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  cross join (
    select coalesce(p_retention, s.retention) as retention
    from fleet.settings s
  ) r
  left join lateral (
    select min(o.source) as source from fleet.adoption_holds() o where o.since < p.range_end
  ) h on true
  where p.state in ('active', 'restored')
  order by p.range_start;
$$;

comment on function fleet.retention_plan(interval, timestamptz) is
  'What a retention would do, partition by partition, and why; changes nothing. Example: select * from fleet.retention_plan(''60 days'') where action = ''retire'';';
--! EndIncluded functions/retention_plan.sql
--! Included functions/retire_partition.sql
-- pg_partman detaches by age alone. What is as old but has to stay attached (held and restored days) is set aside and
-- put back in the same transaction, under the parent's lock that the detach takes anyway; its CHECK constraint makes
-- putting it back a matter of the catalog.
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
  v_kept fleet.hb_partitions;
  v_aside fleet.hb_partitions[];
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
        else 'It is retired already; see select * from fleet.partition_health.'
      end;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and cannot be retired', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  v_source := (select min(h.source) from fleet.adoption_holds() h where h.since < v_partition.range_end);
  if v_source is not null then
    raise exception using
      errcode = 'FL002',
      message = format('rows of %s are being moved into partition %s, which cannot be retired yet', v_source, p_partition),
      hint = format('See select * from fleet.adoption_progress; and then: select fleet.confirm_adoption(%L);', v_source);
  end if;
  if v_partition.relid is null or v_partition.range_end > p_now then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s ends at %s and may still receive heartbeats', p_partition, v_partition.range_end),
      hint = 'Only a partition that is wholly past can be retired.';
  end if;

  -- Counts first, detach last: the parent is locked for the catalog change only.
  execute format('select count(*) from fleet.%I', p_partition) into v_rows;
  v_bytes := pg_total_relation_size(v_partition.relid);

  v_aside := array(
    select p
    from fleet.hb_partitions p
    where p.state in ('active', 'restored')
      and p.relid is not null
      and p.partition_name <> p_partition
      and p.range_start < v_partition.range_start
    order by p.range_start
  );
  foreach v_kept in array v_aside loop
    execute format('alter table fleet.device_heartbeats detach partition fleet.%I', v_kept.partition_name);
  end loop;

  perform partman.drop_partition_time(
    p_parent_table => 'fleet.device_heartbeats',
    p_retention => interval '0',
    p_keep_table => true,
    p_keep_index => true,
    p_retention_schema => 'fleet_detached',
    p_reference_timestamp => v_partition.range_end + interval '1 microsecond'
  );

  foreach v_kept in array v_aside loop
    execute format(
      'alter table fleet.device_heartbeats attach partition fleet.%I for values from (%L) to (%L)',
      v_kept.partition_name, v_kept.range_start, v_kept.range_end
    );
  end loop;

  if to_regclass(format('fleet_detached.%I', p_partition)) is distinct from v_partition.relid::regclass then
    raise exception using
      errcode = 'FL002',
      message = format('pg_partman did not retire partition %s', p_partition),
      hint = 'Another maintenance run of pg_partman may hold its lock; try again in a moment.';
  end if;
  perform fleet.hand_to_archiver(p_partition);

  update fleet.hb_partitions
  set state = 'detached', step = null, detached_at = now(), bytes_size = v_bytes,
    -- Of a day that was archived before, the count is the archive's until the next export.
    row_count = case when archive_url is null then v_rows else row_count end,
    attempts = 0, next_attempt_at = now(), last_error = null
  where partition_name = p_partition;
  perform fleet.record_event('partition.detach', p_partition, v_rows, fleet.elapsed_ms(v_since));
  return v_rows;
end
$$;

comment on function fleet.retire_partition(text, timestamptz) is
  'Counts a past partition, has pg_partman detach it into fleet_detached, and leaves it to the archiver. Returns its rows. Run by fleet.nightly() and fleet.archive_partition().';
--! EndIncluded functions/retire_partition.sql
--! Included functions/metric_values.sql
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
    greatest(0, extract(epoch from coalesce(max(a.range_end), now()) - now()) / 86400)::double precision
  from fleet.attached_partitions() a
  union all
  select 'retention_lag_days', '{}',
    greatest(0, coalesce(max(extract(epoch from now() - s.retention - p.range_end)), 0) / 86400)::double precision
  from fleet.settings s
  left join fleet.hb_partitions p on p.state = 'active' and p.held_reason is null
    and p.range_end <= coalesce((select min(h.since) from fleet.adoption_holds() h), 'infinity')
  union all
  select 'archive_backlog_partitions', '{}', count(*)::double precision
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving', 'archive_failed')
  union all
  select 'archiver_heartbeat_age_seconds', '{}', extract(epoch from now() - max(a.last_seen_at))::double precision
  from fleet.archivers a
  having count(*) > 0
  union all
  select 'scheduler_last_run_age_seconds', jsonb_build_object('job', h.jobname),
    extract(epoch from now() - h.last_start)::double precision
  from fleet.job_history() h
  where h.last_start is not null;
$$;

comment on function fleet.metric_values() is
  'The metrics that live in the database, for /metrics: totals and ages. One row a metric and label set.';
--! EndIncluded functions/metric_values.sql
--! Included functions/begin_adoption.sql
create or replace function fleet.begin_adoption(
  p_source regclass,
  p_columns jsonb,
  p_unknown_devices text,
  p_oldest timestamptz,
  p_forward boolean
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions;
  v_old fleet.adoptions;
begin
  perform fleet.take_adoption_lock();
  begin
    select f.* into v_old from fleet.adoptions f where f.relid = p_source;
    if v_old.state = 'abandoning' then
      raise exception using
        errcode = 'FL002',
        message = format('%s is being abandoned', v_old.source),
        hint = format('Let that end first: call fleet.abandon_adoption(%L);', v_old.source);
    end if;
    -- What was said the first time holds.
    a := fleet.describe_source(
      p_source, coalesce(p_columns, v_old.columns), coalesce(p_unknown_devices, v_old.unknown_devices),
      coalesce(p_oldest, case when v_old.is_oldest_given then v_old.oldest end), coalesce(p_forward, v_old.forwards)
    );
  exception when others then
    perform pg_advisory_unlock(hashtextextended('fleet.adoption', 0));
    raise;
  end;

  -- Another table of that name, or none before: nothing is known of it.
  delete from fleet.adoption_days d where d.source = a.source and v_old.relid is null;
  delete from fleet.adoptions f where f.source = a.source and f.relid <> a.relid;

  if v_old.state = 'moving' and (v_old.columns, v_old.unknown_devices, v_old.match_by) = (a.columns, a.unknown_devices, a.match_by)
    and p_oldest is null and v_old.forwards = a.forwards
  then
    update fleet.adoptions f
    set step_started_at = clock_timestamp(), step_from = f.step_done, step_rows = 0, backend = pg_backend_pid(), last_error = null
    where f.relid = p_source;
    perform fleet.record_event('adoption.resume', p_detail => format('%s, pass %s, by %s', a.source, v_old.pass, session_user));
    return a.source;
  end if;

  insert into fleet.adoptions as f (
    source, relid, state, steps, pass, columns, unknown_devices, oldest, is_oldest_given, forwards, match_by, store_ip, backend
  )
  values (
    a.source, a.relid, 'moving', '{survey,enroll,partitions,forward,move}', 1, a.columns, a.unknown_devices, a.oldest,
    a.is_oldest_given, a.forwards, a.match_by, a.store_ip, pg_backend_pid()
  )
  on conflict (source) do update
    set state = excluded.state, steps = excluded.steps, pass = f.pass + 1, columns = excluded.columns,
      unknown_devices = excluded.unknown_devices, oldest = excluded.oldest, is_oldest_given = excluded.is_oldest_given,
      forwards = excluded.forwards, match_by = excluded.match_by, backend = excluded.backend,
      step = null, last_error = null, confirmed_at = null, abandoned_at = null,
      -- A new beginning after an end; until then it is the same move, with one way back.
      started_at = case when f.state in ('confirmed', 'abandoned') then now() else f.started_at end,
      store_ip = case when f.state in ('confirmed', 'abandoned') then excluded.store_ip else f.store_ip end;
  perform fleet.record_event('adoption.start', p_detail => format('%s, by %s', a.source, session_user));
  return a.source;
end
$$;

comment on function fleet.begin_adoption(regclass, jsonb, text, timestamptz, boolean) is
  'Begins the move of a table, or takes it up where it ended; behind fleet.adopt_table().';
--! EndIncluded functions/begin_adoption.sql
--! Included functions/next_batch_blocks.sql
create or replace function fleet.next_batch_blocks(p_blocks integer, p_rows bigint, p_wanted integer) returns integer
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select greatest(1, least(p_blocks * 4, 8192, p_blocks::bigint * p_wanted / greatest(p_rows, 1)))::integer;
$$;

comment on function fleet.next_batch_blocks(integer, bigint, integer) is
  'How many blocks to read next to get as many rows as wanted, by what the last ones held; growing fourfold at most.';
--! EndIncluded functions/next_batch_blocks.sql
--! Included functions/begin_adoption_step.sql
create or replace function fleet.begin_adoption_step(a fleet.adoptions) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := a.steps[1];
  v_blocks bigint := pg_relation_size(a.relid) / current_setting('block_size')::bigint;
begin
  if v_step = 'survey' then
    delete from fleet.adoption_ranges r where r.source = a.source;
    delete from fleet.adoption_refusals r where r.source = a.source;
    update fleet.adoption_days d set rows_found = 0, checked_at = null where d.source = a.source;
  elsif v_step = 'move' then
    update fleet.adoptions f
    set rows_read = 0, rows_stored = 0, rows_duplicate = 0, rows_refused = 0
    where f.source = a.source;
  end if;
  update fleet.adoptions f
  set step = v_step, filenode = pg_relation_filenode(a.relid), next_block = 0, end_block = v_blocks, batch_blocks = 16,
    next_partition = '-infinity', step_started_at = clock_timestamp(), step_from = 0, step_done = 0, step_rows = 0,
    step_total = coalesce(case v_step
      when 'survey' then v_blocks
      when 'move' then v_blocks
      when 'partitions' then (
        select max(d.day) - min(d.day) + 1 from fleet.adoption_days d where d.source = a.source and d.rows_found > 0
      )
      when 'verify' then (select sum(d.rows_found) from fleet.adoption_days d where d.source = a.source)
      when 'write_back' then (select count(*) from fleet.attached_partitions())
      else 1
    end, 0)
  where f.source = a.source;
end
$$;

comment on function fleet.begin_adoption_step(fleet.adoptions) is
  'Sets cursor, counts and progress of an adoption to the start of its next step.';
--! EndIncluded functions/begin_adoption_step.sql
--! Included functions/survey_blocks.sql
create or replace function fleet.survey_blocks(a fleet.adoptions, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_last bigint := least(a.end_block, a.next_block + a.batch_blocks);
  v_rows bigint;
begin
  with given as materialized (
    select r.source_device, (r.beat).ts as ts,
      -- Those who are about to be enrolled are counted as if they were.
      case when not (r.reason = 'unknown_device' and a.unknown_devices = 'enroll') then r.reason end as reason,
      r.reason = 'unknown_device' as is_unknown
    from fleet.read_source(a, a.next_block, v_last) r
  ),
  ranges as (
    insert into fleet.adoption_ranges (source, first_block, last_block, first_ts, last_ts, rows_refused)
    select a.source, a.next_block, v_last, min(g.ts) filter (where g.reason is null), max(g.ts) filter (where g.reason is null),
      count(g.reason)
    from given g
  ),
  days as (
    insert into fleet.adoption_days as d (source, day, rows_found)
    select a.source, g.ts::date, count(*)
    from given g
    where g.reason is null
    group by g.ts::date
    on conflict (source, day) do update
      set rows_found = d.rows_found + excluded.rows_found
  ),
  refusals as (
    insert into fleet.adoption_refusals as f (source, reason, source_device, rows, first_ts, last_ts)
    select a.source, case when g.is_unknown then 'unknown_device' else g.reason end,
      case when g.is_unknown then coalesce(g.source_device, '') else '' end, count(*), min(g.ts), max(g.ts)
    from given g
    where g.reason is not null or g.is_unknown
    group by 2, 3
    on conflict (source, reason, source_device) do update
      set rows = f.rows + excluded.rows, first_ts = least(f.first_ts, excluded.first_ts), last_ts = greatest(f.last_ts, excluded.last_ts)
  )
  select count(*) into v_rows from given;

  update fleet.adoptions f
  set next_block = v_last, step_done = v_last, step_rows = f.step_rows + v_rows,
    batch_blocks = fleet.next_batch_blocks(a.batch_blocks, v_rows, p_batch_rows)
  where f.source = a.source;
  return v_last < a.end_block;
end
$$;

comment on function fleet.survey_blocks(fleet.adoptions, integer) is
  'Counts the next blocks of a table that is adopted: rows by day, refused rows by reason, and where the days are.';
--! EndIncluded functions/survey_blocks.sql
--! Included functions/enroll_unknown.sql
-- Their tokens are known to nobody: fleet.renew_token() gives one to a device that is still in use.
create or replace function fleet.enroll_unknown(a fleet.adoptions) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows bigint;
begin
  if a.unknown_devices <> 'enroll' then
    return false;
  end if;
  -- Nobody else enrolls meanwhile: a number must not go to another device between the look and the insert.
  lock table fleet.devices in share row exclusive mode;
  if a.match_by = 'device_id' then
    -- Numbers keep their number, under which nobody was enrolled, and new devices get higher ones.
    perform setval(pg_get_serial_sequence('fleet.devices', 'device_id'), greatest(
      (select max(r.source_device::bigint) from fleet.adoption_refusals r where r.source = a.source and r.reason = 'unknown_device' and r.source_device <> ''),
      nextval(pg_get_serial_sequence('fleet.devices', 'device_id'))
    ));
  end if;
  with unknown as (
    select r.source_device, r.first_ts,
      case a.match_by
        when 'device_id' then r.source_device::bigint
        else nextval(pg_get_serial_sequence('fleet.devices', 'device_id'))
      end as device_id
    from fleet.adoption_refusals r
    where r.source = a.source and r.reason = 'unknown_device'
      and btrim(r.source_device) <> '' and length(r.source_device) <= 200
  ),
  enrolled as (
    insert into fleet.devices (device_id, alias, token_hash)
    overriding system value
    select u.device_id, u.source_device, fleet.hash_token(fleet.make_token('nxd_'))
    from unknown u
    order by u.source_device
    on conflict do nothing
    returning device_id, alias
  ),
  statuses as (
    insert into fleet.device_last_status (device_id, is_silent)
    select e.device_id, false
    from enrolled e
    order by e.device_id
  ),
  mapped as (
    insert into fleet.adoption_devices (source, source_device, device_id)
    select a.source, e.alias, e.device_id
    from enrolled e
    where a.match_by = 'map'
    on conflict do nothing
  ),
  gone as (
    delete from fleet.adoption_refusals r
    using enrolled e
    where r.source = a.source and r.reason = 'unknown_device' and r.source_device = e.alias
  )
  select count(*) into v_rows from enrolled;
  if v_rows > 0 then
    perform fleet.record_event('adoption.enroll', p_rows => v_rows, p_detail => format('devices of %s', a.source));
  end if;
  return false;
end
$$;

comment on function fleet.enroll_unknown(fleet.adoptions) is
  'Enrolls the devices of a table that is adopted and that nobody enrolled, where that was asked for; numbers keep their number.';
--! EndIncluded functions/enroll_unknown.sql
--! Included functions/prepare_partitions.sql
create or replace function fleet.prepare_partitions(a fleet.adoptions) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  c_days_at_once constant integer := 5;  -- making one locks the parent for about 10 ms, and heartbeats wait that long
  c_most_empty constant integer := 400;
  v_first date;
  v_last date;
  v_missing date;
  v_days bigint;
  v_usual date;
begin
  select min(d.day), max(d.day), count(*) into v_first, v_last, v_days
  from fleet.adoption_days d
  where d.source = a.source and d.rows_found > 0;
  if v_first is null then
    return false;
  end if;

  if not a.is_oldest_given and v_last - v_first + 1 - v_days > c_most_empty then
    -- The day after the longest gap.
    select g.day into v_usual
    from (
      select d.day, d.day - lag(d.day) over (order by d.day) as gap
      from fleet.adoption_days d
      where d.source = a.source and d.rows_found > 0
    ) g
    order by g.gap desc nulls last
    limit 1;
    raise exception using
      errcode = 'FL422',
      message = format(
        '%s has heartbeats from %s to %s, and none on %s days between: clocks were wrong', a.source, v_first, v_last,
        v_last - v_first + 1 - v_days
      ),
      hint = format(
        'Say from when on to take them, older ones are refused: call fleet.adopt_table(%L, p_oldest => %L); %s if all of them are right.',
        a.source, v_usual, v_first
      );
  end if;

  select m.day into v_missing
  from (
    select d.day::date as day
    from generate_series(v_first, v_last, interval '1 day') as d (day)
    except
    select generate_series(p.range_start, p.range_end - interval '1 day', interval '1 day')::date
    from fleet.attached_partitions() p
  ) m
  cross join fleet.retired_ranges() as r (retired)
  where not r.retired @> m.day::timestamptz
  order by m.day
  limit 1;
  if v_missing is null then
    return false;
  end if;
  perform fleet.create_partitions(v_missing, least(v_missing + c_days_at_once - 1, v_last));
  update fleet.adoptions f
  set step_done = v_missing - v_first
  where f.source = a.source;
  return true;
end
$$;

comment on function fleet.prepare_partitions(fleet.adoptions) is
  'Makes the next partitions that the days of a table that is adopted need, from its first day to its last; days in the archive are left to fleet.request_restore().';
--! EndIncluded functions/prepare_partitions.sql
--! Included functions/record_forward_failure.sql
-- Called inside the old application's transactions: never an error, and no row that they would wait for each other at.
create or replace function fleet.record_forward_failure(p_source text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.events e where e.event = 'adoption.forward' and e.at > clock_timestamp() - interval '1 minute'
  ) then
    perform fleet.record_event(
      'adoption.forward', p_is_ok => false, p_detail => format('%s: %s; its next pass takes those rows', p_source, p_error)
    );
  end if;
exception when others then
  null;
end
$$;

comment on function fleet.record_forward_failure(text, text) is
  'Says in fleet.events, once a minute at most, that rows written into a table that is adopted could not be forwarded.';
--! EndIncluded functions/record_forward_failure.sql
--! Included functions/stop_forwarding.sql
create or replace function fleet.stop_forwarding(a fleet.adoptions) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
begin
  execute format('drop function if exists fleet.%I() cascade', 'forward_' || a.relid);
  return false;
end
$$;

comment on function fleet.stop_forwarding(fleet.adoptions) is 'Takes the trigger of an adoption away, with its function.';
--! EndIncluded functions/stop_forwarding.sql
--! Included functions/start_forwarding.sql
-- A function of its own for each table: it is compiled once, and dropping it takes the trigger away, which otherwise only
-- the owner of the table may do.
create or replace function fleet.start_forwarding(a fleet.adoptions) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not a.forwards then
    return fleet.stop_forwarding(a);
  end if;
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
    format('Trigger on %s: passes on what is written there. Goes when that is confirmed or abandoned.', a.source)
  );
  -- Holds writers up until it is committed, and waits for those under way: after it every row is forwarded, or was there before.
  execute format(
    'create or replace trigger fleet_forward after insert on %s referencing new table as new_rows '
      'for each statement execute function fleet.%I()',
    a.source, 'forward_' || a.relid
  );
  return false;
end
$$;

comment on function fleet.start_forwarding(fleet.adoptions) is
  'Puts a trigger on a table that is adopted, which passes on what is written there.';
--! EndIncluded functions/start_forwarding.sql
--! Included functions/move_blocks.sql
create or replace function fleet.move_blocks(a fleet.adoptions, p_batch_rows integer) returns boolean
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
  -- Twice at most: a row may have come since the days were counted, of a day that has no partition.
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
        -- Devices in order, as ingest; within a bucket the one that was written first.
        order by (g.beat).device_id, date_bin('10 seconds', (g.beat).ts, timestamptz '2000-01-01 00:00:00+00'), g.tid
        on conflict do nothing
        returning device_id, ts, received_at
      ),
      days as (
        insert into fleet.adoption_days as d (source, day, rows_stored)
        select a.source, s.ts::date, count(*)
        from stored s
        group by s.ts::date
        on conflict (source, day) do update
          set rows_stored = d.rows_stored + excluded.rows_stored
      ),
      devices as (
        -- It was there when it sent: the roster must not say that it came later.
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

  update fleet.adoptions f
  set next_block = v_last, step_done = v_last, step_rows = f.step_rows + v_rows,
    rows_read = f.rows_read + v_rows, rows_stored = f.rows_stored + v_stored, rows_refused = f.rows_refused + v_refused,
    rows_duplicate = f.rows_duplicate + v_rows - v_stored - v_refused,
    batch_blocks = fleet.next_batch_blocks(a.batch_blocks, v_rows, p_batch_rows)
  where f.source = a.source;
  if v_last < a.end_block then
    return true;
  end if;

  -- Counted anew by the next night.
  update fleet.hb_partitions p
  set row_count = null
  where p.state = 'active' and p.row_count is not null and p.archive_url is null
    and exists (
      select from fleet.adoption_days d
      where d.source = a.source and d.rows_stored > 0 and d.day >= p.range_start::date and d.day < p.range_end::date
    );
  update fleet.adoptions f
  set state = 'moved', moved_at = clock_timestamp()
  where f.source = a.source
  returning * into a;
  perform fleet.record_event(
    'adoption.moved', p_rows => a.rows_stored, p_duration_ms => fleet.elapsed_ms(a.started_at),
    p_detail => format('%s, pass %s: %s read, %s duplicates, %s refused', a.source, a.pass, a.rows_read, a.rows_duplicate, a.rows_refused)
  );
  return false;
end
$$;

comment on function fleet.move_blocks(fleet.adoptions, integer) is
  'Stores the rows of the next blocks of a table that is adopted. The cursor moves in the same transaction, and what is there already stays.';
--! EndIncluded functions/move_blocks.sql
--! Included functions/verify_days.sql
create or replace function fleet.verify_days(a fleet.adoptions, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set enable_nestloop = off  -- how many rows there are is nothing that the planner can guess
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
    from fleet.adoption_days d
    where d.source = a.source and d.rows_found > 0 and d.checked_at is null
  ) w
  where w.rows_before < p_batch_rows;

  if v_first is not null then
    -- One snapshot: a row that the trigger forwards is seen on both sides or on none.
    execute format(
      $query$
        with given as (
          select r.beat
          from fleet.adoption_ranges g
          cross join lateral fleet.read_source($1, g.first_block, g.last_block) r
          where g.source = ($1).source and g.first_ts < $3 and g.last_ts >= $2
            and r.reason is null and (r.beat).ts >= $2 and (r.beat).ts < $3
        ),
        source as materialized (
          select b.device_id, date_bin('10 seconds', b.ts, timestamptz '2000-01-01 00:00:00+00') as bucket, b.ts, b.received_at,
            %1$s as checksum
          from (select (g.beat).* from given g) b
        ),
        store as materialized (
          select b.device_id, date_bin('10 seconds', b.ts, timestamptz '2000-01-01 00:00:00+00') as bucket, b.ts, b.received_at,
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
        update fleet.adoption_days d
        set rows_kept = coalesce(f.kept, 0), rows_duplicate = coalesce(f.duplicate, 0), rows_missing = coalesce(f.missing, 0),
          -- Rows of ours that no longer look like themselves hide among those of the new server: fewer are left than were stored.
          rows_changed = coalesce(f.changed + greatest(least(f.foreign_rows, d.rows_stored - f.kept), 0), 0),
          source_checksum = coalesce(f.source_checksum, 0), store_checksum = coalesce(f.store_checksum, 0),
          checked_at = clock_timestamp()
        from fleet.adoption_days w
        left join days f on f.day = w.day
        where d.source = ($1).source and w.source = d.source and w.day = d.day
          and d.day >= $2::date and d.day < $3::date and d.checked_at is null
      $query$,
      fleet.checksum_expression('fleet.device_heartbeats')
    )
    using a, v_first::timestamptz, (v_last + 1)::timestamptz;
    update fleet.adoptions f
    set step_done = f.step_done + v_rows, step_rows = f.step_rows + v_rows
    where f.source = a.source;
    return true;
  end if;

  select sum(d.rows_kept), count(*) filter (
    where d.rows_missing > 0 or d.rows_changed > 0 or d.source_checksum <> d.store_checksum
  )
  into v_rows, v_bad
  from fleet.adoption_days d
  where d.source = a.source and d.checked_at is not null;
  update fleet.adoptions f
  set state = case when v_bad = 0 then 'verified' else 'moved' end, verified_at = clock_timestamp()
  where f.source = a.source;
  perform fleet.record_event(
    'adoption.verified', p_is_ok => v_bad = 0, p_rows => v_rows,
    p_detail => format('%s: %s', a.source, case when v_bad = 0 then 'no difference' else format('differences on %s days', v_bad) end)
  );
  return false;
end
$$;

comment on function fleet.verify_days(fleet.adoptions, integer) is
  'Compares the next days of a table that is adopted with the store, row by row and by the checksum over the rows of both; after the last one, says whether it is verified.';
--! EndIncluded functions/verify_days.sql
--! Included functions/lacking_beats.sql
create or replace function fleet.lacking_beats(a fleet.adoptions, p_from timestamptz, p_to timestamptz)
returns setof fleet.device_heartbeats
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with given as materialized (
    select (r.beat).device_id, date_bin('10 seconds', (r.beat).ts, timestamptz '2000-01-01 00:00:00+00') as bucket
    from fleet.adoption_ranges g
    cross join lateral fleet.read_source(a, g.first_block, g.last_block) r
    where g.source = a.source and g.first_ts < p_to and g.last_ts >= p_from and r.reason is null
  )
  select h.*
  from fleet.device_heartbeats h
  where h.ts >= p_from and h.ts < p_to
    and h.received_at >= a.started_at
    and not exists (
      select from given g
      where g.device_id = h.device_id and g.bucket = date_bin('10 seconds', h.ts, timestamptz '2000-01-01 00:00:00+00')
    );
$$;

comment on function fleet.lacking_beats(fleet.adoptions, timestamptz, timestamptz) is
  'Heartbeats of a range that the store received since the adoption of a table began, of buckets that the table has not.';
--! EndIncluded functions/lacking_beats.sql
--! Included functions/write_back_partition.sql
create or replace function fleet.write_back_partition(a fleet.adoptions) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
  v_partition record;
  v_insert text;
  v_beat fleet.device_heartbeats;
  v_rows bigint := 0;
  v_failed bigint := 0;
  v_error text;
begin
  select p.partition_name, p.range_start, p.range_end into v_partition
  from fleet.attached_partitions() p
  where p.range_start > a.next_partition
  order by p.range_start
  limit 1;
  if not found then
    update fleet.adoptions f
    set state = 'abandoned', abandoned_at = clock_timestamp()
    where f.source = a.source;
    delete from fleet.adoption_ranges r where r.source = a.source;
    perform fleet.record_event(
      'adoption.abandoned', p_rows => a.rows_written_back, p_is_ok => a.rows_not_written_back = 0,
      p_detail => format('%s: %s written back, %s that it did not take', a.source, a.rows_written_back, a.rows_not_written_back)
    );
    return false;
  end if;

  if exists (
    select from fleet.device_heartbeats h
    where h.ts >= v_partition.range_start and h.ts < v_partition.range_end and h.received_at >= a.started_at
  ) then
    select format(
      $query$
        insert into %s (%s)
        select %s
        from {beats} h
        left join fleet.devices d on d.device_id = h.device_id
        left join lateral (
          select min(n.source_device) as source_device
          from fleet.adoption_devices n
          where n.source = %L and n.device_id = h.device_id
        ) m on true
      $query$,
      a.source,
      string_agg(format('%I', k.value), ', ' order by k.key),
      string_agg(
        case k.key
          when 'device_id' then format(
            'coalesce(m.source_device, %s h.device_id::text)::%s',
            case when a.match_by <> 'device_id' then 'd.alias,' end,
            format_type(t.atttypid, null)
          )
          -- As text, inet has a mask that nobody gave it.
          when 'ip' then format('abbrev(h.ip)::%s', format_type(t.atttypid, null))
          else format('h.%I::%s', k.key, format_type(t.atttypid, null))
        end,
        ', ' order by k.key
      ),
      a.source
    )
    into v_insert
    from jsonb_each_text(a.columns) k
    join pg_attribute t on t.attrelid = a.relid and t.attname = k.value
    where k.value is not null;
    begin
      execute replace(v_insert, '{beats}', 'fleet.lacking_beats($1, $2, $3)') using a, v_partition.range_start, v_partition.range_end;
      get diagnostics v_rows = row_count;
    exception when data_exception or integrity_constraint_violation then
      -- One that does not fit must not keep the others.
      for v_beat in select l.* from fleet.lacking_beats(a, v_partition.range_start, v_partition.range_end) l loop
        begin
          execute replace(v_insert, '{beats}', '(select ($1).*)') using v_beat;
          v_rows := v_rows + 1;
        exception when data_exception or integrity_constraint_violation then
          v_failed := v_failed + 1;
          v_error := sqlerrm;
        end;
      end loop;
    end;
  end if;

  if v_failed > 0 then
    perform fleet.record_event(
      'adoption.write_back', p_is_ok => false, p_rows => v_failed, p_partition => v_partition.partition_name,
      p_detail => format('not taken by %s, the last because: %s', a.source, v_error)
    );
  end if;
  update fleet.adoptions f
  set next_partition = v_partition.range_start, step_done = f.step_done + 1, step_rows = f.step_rows + v_rows,
    rows_written_back = f.rows_written_back + v_rows, rows_not_written_back = f.rows_not_written_back + v_failed
  where f.source = a.source;
  return true;
end
$$;

comment on function fleet.write_back_partition(fleet.adoptions) is
  'Writes what the next partition has received since the adoption began, and the table lacks, back into the table.';
--! EndIncluded functions/write_back_partition.sql
--! Included functions/adoption_step.sql
create or replace function fleet.adoption_step(p_source text, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
set jit = off
as $$
declare
  a fleet.adoptions;
  v_step text;
  v_more boolean;
begin
  select f.* into a from fleet.adoptions f where f.source = p_source for update;
  v_step := a.steps[1];
  if v_step is null then
    return false;
  end if;
  if pg_relation_filenode(a.relid) is null then
    raise exception using
      errcode = 'FL404',
      message = format('table %s is gone', p_source),
      hint = format('What was moved is in the store. To be done with it: select fleet.forget_adoption(%L);', p_source);
  end if;
  -- A table that was rewritten (VACUUM FULL, CLUSTER) has its rows in other places: read from the start.
  if a.step is distinct from v_step or (v_step in ('survey', 'move') and a.filenode <> pg_relation_filenode(a.relid)) then
    perform fleet.begin_adoption_step(a);
    return true;
  end if;

  case v_step
    when 'survey' then v_more := fleet.survey_blocks(a, p_batch_rows);
    when 'enroll' then v_more := fleet.enroll_unknown(a);
    when 'partitions' then v_more := fleet.prepare_partitions(a);
    when 'forward' then v_more := fleet.start_forwarding(a);
    when 'move' then v_more := fleet.move_blocks(a, p_batch_rows);
    when 'verify' then v_more := fleet.verify_days(a, p_batch_rows * 10);
    when 'unforward' then v_more := fleet.stop_forwarding(a);
    when 'write_back' then v_more := fleet.write_back_partition(a);
  end case;
  update fleet.adoptions f
  set updated_at = clock_timestamp(), last_error = null,
    step = case when v_more then f.step end,
    steps = case when v_more then f.steps else f.steps[2:] end
  where f.source = p_source;
  return v_more or cardinality(a.steps) > 1;
end
$$;

comment on function fleet.adoption_step(text, integer) is
  'The next batch of what is left to do for a table that is adopted, in this transaction; false when nothing is left. Called by fleet.run_adoption().';
--! EndIncluded functions/adoption_step.sql
--! Included functions/end_adoption.sql
create or replace function fleet.end_adoption(p_source text, p_error text default null) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_error is not null then
    update fleet.adoptions f set last_error = p_error where f.source = p_source;
    perform fleet.record_event('adoption.stopped', p_is_ok => false, p_detail => format('%s: %s', p_source, p_error));
  end if;
  perform pg_advisory_unlock(hashtextextended('fleet.adoption', 0));
  return (select f.state from fleet.adoptions f where f.source = p_source);
end
$$;

comment on function fleet.end_adoption(text, text) is
  'Ends a run of an adoption, with why it stopped, and frees its lock; answers the state.';
--! EndIncluded functions/end_adoption.sql
--! Included functions/begin_verification.sql
create or replace function fleet.begin_verification(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions := fleet.get_adoption(p_source);
begin
  if a.state not in ('moved', 'verified') then
    raise exception using
      errcode = 'FL002',
      message = format('%s is %s and cannot be verified', a.source, a.state),
      hint = format('Move it first, or to its end: call fleet.adopt_table(%L);', a.source);
  end if;
  perform fleet.take_adoption_lock();
  update fleet.adoptions f
  set state = 'moved', steps = '{survey,verify}', step = null, verified_xid = pg_snapshot_xmin(pg_current_snapshot()),
    backend = pg_backend_pid(), last_error = null
  where f.source = a.source;
  return a.source;
end
$$;

comment on function fleet.begin_verification(regclass) is 'Begins the verification of an adoption; behind fleet.verify_adoption().';
--! EndIncluded functions/begin_verification.sql
--! Included functions/begin_abandoning.sql
create or replace function fleet.begin_abandoning(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions := fleet.get_adoption(p_source);
  v_grants text;
  v_needed text;
begin
  if a.state = 'confirmed' then
    raise exception using
      errcode = 'FL002',
      message = format('%s was confirmed at %s: there is no way back', a.source, a.confirmed_at),
      hint = format('What the store has can be copied by hand: insert into %s select … from fleet.device_heartbeats;', a.source);
  end if;

  select string_agg(g.grant_, '; ') into v_grants
  from (
    select format('grant insert on %s to %I', a.source, current_user) as grant_
    where not has_table_privilege(p_source, 'insert')
    union all
    -- What a serial column takes its default from.
    select format('grant usage on sequence %s to %I', d.objid::regclass, current_user)
    from pg_depend d
    join pg_class s on s.oid = d.objid
    where d.classid = 'pg_class'::regclass and d.refobjid = p_source and d.deptype = 'a'
      and case s.relkind when 'S' then not has_sequence_privilege(s.oid, 'usage') else false end
  ) g;
  -- What the store received since, at a glance; nothing: no right is needed.
  if v_grants is not null and exists (select from fleet.device_last_status ls where ls.last_received_at >= a.started_at) then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be written back to: role %s may not insert into it', a.source, current_user),
      hint = format('As its owner: %s;', v_grants);
  end if;
  select string_agg(t.attname, ', ' order by t.attnum) into v_needed
  from pg_attribute t
  where t.attrelid = p_source and t.attnum > 0 and not t.attisdropped and t.attnotnull and not t.atthasdef and t.attidentity = ''
    and t.attname not in (select k.value from jsonb_each_text(a.columns) k where k.value is not null);
  if v_needed is not null then
    raise exception using
      errcode = 'FL422',
      message = format('%s cannot be written back to: the store has nothing for its columns %s', a.source, v_needed),
      hint = format('As its owner: give them a default, as in alter table %s alter %I set default …;', a.source, split_part(v_needed, ', ', 1));
  end if;

  perform fleet.take_adoption_lock();
  update fleet.adoptions f
  set state = 'abandoning', backend = pg_backend_pid(), last_error = null,
    steps = case when a.state = 'abandoning' then f.steps else '{unforward,survey,write_back}' end,
    step = case when a.state = 'abandoning' then f.step end,
    step_started_at = clock_timestamp(), step_from = f.step_done, step_rows = 0
  where f.source = a.source;
  return a.source;
end
$$;

comment on function fleet.begin_abandoning(regclass) is 'Begins the way back of an adoption; behind fleet.abandon_adoption().';
--! EndIncluded functions/begin_abandoning.sql
--! Included functions/confirm_adoption.sql
-- Everything was compared by the verification. What is left are the rows written since: those are compared while the table is
-- locked against writers, which takes one read of it, and nothing of the rows that are older.
create or replace function fleet.confirm_adoption(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  c_blocks constant integer := 1024;
  a fleet.adoptions := fleet.get_adoption(p_source);
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
      hint = format('First: call fleet.verify_adoption(%L);', a.source);
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL422',
      message = format('a transaction that is %s would not see what is written before the lock', current_setting('transaction_isolation')),
      hint = format('In a transaction of its own: select fleet.confirm_adoption(%L);', a.source);
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

  execute format(
    $query$
      select count(*), count(*) filter (where h.checksum is null),
        count(*) filter (where h.checksum <> s.checksum and h.ts = s.ts and h.received_at = s.received_at)
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
      hint = format('Take them over and look again: call fleet.adopt_table(%1$L); call fleet.verify_adoption(%1$L);', a.source);
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
          hint = format('Nothing has changed. Try again when the long reads have ended: select fleet.confirm_adoption(%L);', a.source);
      end if;
      perform pg_sleep(0.1);
    end;
  end loop;
  delete from fleet.adoption_ranges r where r.source = a.source;
  update fleet.adoptions f
  set state = 'confirmed', confirmed_at = clock_timestamp(), updated_at = clock_timestamp()
  where f.source = a.source;
  perform fleet.record_event(
    'adoption.confirmed', p_rows => (select sum(d.rows_kept)::bigint from fleet.adoption_days d where d.source = a.source),
    p_detail => format('%s, by %s', a.source, session_user)
  );
  return format(
    '%1$s is confirmed; %2$s rows that were written since it was verified were compared too. When you no longer need it, as its owner: drop table %1$s;',
    a.source, v_rows
  );
end
$$;

comment on function fleet.confirm_adoption(regclass) is
  'Ends the adoption of a verified table: compares what was written since, with writers kept out for that moment, and takes the trigger away. From then on there is no way back; the table is left for you to drop. Example: select fleet.confirm_adoption(''public.device_heartbeats'');';
--! EndIncluded functions/confirm_adoption.sql
--! Included functions/forget_adoption.sql
create or replace function fleet.forget_adoption(p_source text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.adoptions;
begin
  select f.* into a from fleet.adoptions f where f.source = p_source for update;
  if not found then
    return false;
  end if;
  if a.state not in ('confirmed', 'abandoned') and exists (select from pg_class c where c.oid = a.relid) then
    raise exception using
      errcode = 'FL002',
      message = format('%s is %s and still there', p_source, a.state),
      hint = format('Confirm or abandon it: select fleet.confirm_adoption(%1$L); or call fleet.abandon_adoption(%1$L);', p_source);
  end if;
  perform fleet.stop_forwarding(a);
  delete from fleet.adoption_ranges r where r.source = p_source;
  delete from fleet.adoption_refusals r where r.source = p_source;
  delete from fleet.adoption_days d where d.source = p_source;
  delete from fleet.adoption_devices d where d.source = p_source;
  delete from fleet.adoptions f where f.source = p_source;
  perform fleet.record_event('adoption.forgotten', p_detail => format('%s, by %s', p_source, session_user));
  return true;
end
$$;

comment on function fleet.forget_adoption(text) is
  'Forgets what is known of the move of a table that is confirmed, abandoned or gone; false when nothing is known. Heartbeats stay. Example: select fleet.forget_adoption(''public.device_heartbeats'');';
--! EndIncluded functions/forget_adoption.sql
--! Included functions/refused_rows.sql
create or replace function fleet.refused_rows(p_source regclass, p_limit integer default 100)
returns table (reason text, source_device text, ts timestamptz, source_row jsonb)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  a fleet.adoptions := fleet.get_adoption(p_source);
  v_row fleet.source_row;
begin
  for v_row in
    select r.*
    from fleet.adoption_ranges g
    cross join lateral fleet.read_source(a, g.first_block, g.last_block) r
    where g.source = a.source and g.rows_refused > 0 and r.reason is not null
    limit p_limit
  loop
    reason := v_row.reason;
    source_device := v_row.source_device;
    ts := (v_row.beat).ts;
    execute format('select to_jsonb(r) from %s r where r.ctid = $1', a.source) into source_row using v_row.tid;
    return next;
  end loop;
end
$$;

comment on function fleet.refused_rows(regclass, integer) is
  'Rows that were left in a table that is adopted, as they are, and why; those counted in fleet.adoption_refusals. Example: select * from fleet.refused_rows(''public.device_heartbeats'', 20);';
--! EndIncluded functions/refused_rows.sql
--! Included functions/renew_token.sql
create or replace function fleet.renew_token(p_device_id bigint) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token text := fleet.make_token('nxd_');
begin
  update fleet.devices
  set token_hash = fleet.hash_token(v_token), revoked_at = null
  where device_id = p_device_id;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  perform pg_notify('fleet_tokens', 'device:' || p_device_id);
  return v_token;
end
$$;

comment on function fleet.renew_token(bigint) is
  'Gives a device a new token, shown only now, in place of one that was lost, revoked, or never known; the old one stops within a second. Example: select fleet.renew_token(42);';
--! EndIncluded functions/renew_token.sql
--! Included functions/check_adoption.sql
create or replace function fleet.check_adoption(p_now timestamptz default now())
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
  v_commands text;
  v_names text;
begin
  check_name := 'adoptions';
  select string_agg(f.source || ' ' || f.fault, ', ' order by f.source), string_agg(f.command, e'\n' order by f.source)
  into v_names, v_commands
  from (
    select a.source,
      case
        when c.oid is null then 'is gone'
        when cardinality(a.steps) > 0 then 'stopped' || coalesce(': ' || a.last_error, '')
        else format('has been %s since %s', a.state, a.started_at::date)
      end as fault,
      case
        when c.oid is null then format('select fleet.forget_adoption(%L);', a.source)
        when a.state = 'moving' then format('call fleet.adopt_table(%L);', a.source)
        when a.state = 'abandoning' then format('call fleet.abandon_adoption(%L);', a.source)
        when a.state = 'moved' then format('call fleet.verify_adoption(%L);', a.source)
        else format('select fleet.confirm_adoption(%L);', a.source)
      end as command
    from fleet.adoptions a
    left join pg_class c on c.oid = a.relid
    where a.state in ('moving', 'moved', 'verified', 'abandoning')
      and (
        c.oid is null
        or cardinality(a.steps) > 0 and not exists (select from fleet.lock_holders('adoption') h where h = a.backend)
        -- No partition is retired until then.
        or a.started_at < p_now - interval '30 days'
      )
  ) f;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'none waits for anybody');
  remedy := v_commands;
  return next;

  check_name := 'adoption_forwards';
  select string_agg(distinct e.detail, ', ') into v_names
  from fleet.events e
  where e.event = 'adoption.forward' and e.at > p_now - interval '1 hour'
    and exists (select from fleet.adoptions a where a.state in ('moving', 'moved', 'verified') and e.at > coalesce(a.moved_at, a.started_at));
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'what is written into tables that are adopted comes through');
  remedy := (
    select string_agg(format('call fleet.adopt_table(%L);', a.source), e'\n' order by a.source)
    from fleet.adoptions a
    where v_names is not null and a.state in ('moving', 'moved', 'verified')
  );
  return next;
end
$$;

comment on function fleet.check_adoption(timestamptz) is
  'What fleet.check() says of plain tables that are moved into the store: those that stopped, wait for long, or whose trigger fails.';
--! EndIncluded functions/check_adoption.sql
--! Included functions/check.sql
-- The themes in order of importance. Whatever is broken, one of them fails alone: the others still say what they see.
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
  foreach v_theme in array array[
    'check_partitions($1)', 'check_ingest($1)', 'check_silence($1)', 'check_scheduler($1)', 'check_archive($1)',
    'check_sessions($1)', 'check_storage($1)', 'check_adoption($1)', 'check_settings()'
  ] loop
    begin
      return query execute 'select * from fleet.' || v_theme using p_now;
    exception when others then
      check_name := split_part(v_theme, '(', 1);
      status := 'fail';
      detail := 'could not look: ' || sqlerrm;
      remedy := format(e'-- shows where it ends\nselect * from fleet.%I();', check_name);
      return next;
    end;
  end loop;
end
$$;

comment on function fleet.check(timestamptz) is
  'One row per thing that can go wrong: ok, warn or fail, with the remedy as commands, one a line: SQL as fleet_dba unless its first line says "-- as superuser" or "-- as fleet_owner", a shell''s where it says "# in a shell". Reads no heartbeats but those of a few devices. Example: select * from fleet.check() where status <> ''ok'';';
--! EndIncluded functions/check.sql
--! Included procedures/run_adoption.sql
-- A batch is a transaction: killed anywhere, what is committed stays, and the cursor with it.
create or replace procedure fleet.run_adoption(
  p_source text,
  p_batch_rows integer,
  p_pause interval,
  inout p_state text
)
language plpgsql
as $$
declare
  v_more boolean;
  v_code text;
  v_error text;
  v_hint text;
  v_attempt integer := 0;
begin
  loop
    v_error := null;
    begin
      perform pg_catalog.pg_sleep(pg_catalog.date_part('epoch', p_pause) + 0.2 * v_attempt);
      v_more := fleet.adoption_step(p_source, p_batch_rows);
    exception when query_canceled or others then
      get stacked diagnostics v_code = returned_sqlstate, v_error = message_text, v_hint = pg_exception_hint;
    end;
    commit;
    if v_error is null then
      v_attempt := 0;
      exit when not v_more;
    elsif v_attempt < 20 and (v_code in ('55P03', '40P01', '40001') or v_error like '%lock timeout%') then
      v_attempt := v_attempt + 1;
    else
      p_state := fleet.end_adoption(p_source, v_error);
      commit;
      raise exception using
        errcode = v_code, message = v_error,
        hint = pg_catalog.concat_ws(' ', nullif(v_hint, ''), 'What is done stays done; the same call goes on from there.');
    end if;
  end loop;
  p_state := fleet.end_adoption(p_source);
  commit;
end
$$;

comment on procedure fleet.run_adoption(text, integer, interval, text) is
  'Does what is left to do for a table that is adopted, batch by batch; waits and tries again where locks are busy.';
--! EndIncluded procedures/run_adoption.sql
--! Included procedures/adopt_table.sql
create or replace procedure fleet.adopt_table(
  p_source regclass,
  inout p_state text default null,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null,
  p_forward boolean default null,
  p_batch_rows integer default 5000,
  p_pause interval default '20 milliseconds'
)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;  -- refused here inside a transaction, before the lock is taken
  if p_batch_rows is null or p_batch_rows not between 1 and 100000 or p_pause is null or p_pause not between '0' and '1 minute' then
    raise exception using
      errcode = 'FL422',
      message = pg_catalog.format('cannot move batches of %s rows with pauses of %s', coalesce(p_batch_rows::text, 'null'), coalesce(p_pause::text, 'null')),
      hint = 'p_batch_rows is 1 to 100000, p_pause 0 to 1 minute.';
  end if;
  v_source := fleet.begin_adoption(p_source, p_columns, p_unknown_devices, p_oldest, p_forward);
  commit;
  call fleet.run_adoption(v_source, p_batch_rows, p_pause, p_state);
end
$$;

comment on procedure fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval) is
  'Moves a plain table of heartbeats into fleet.device_heartbeats while both are in use, and goes on where it was ended; the table itself is not changed. Called again after its end it takes over what is missing. See first fleet.adoption_plan(). Options: p_columns => ''{"battery_pct": "battery"}'' where names differ; p_unknown_devices => ''enroll''; p_oldest; p_forward => false for no trigger on the table; p_batch_rows; p_pause. Example: call fleet.adopt_table(''public.device_heartbeats'');';
--! EndIncluded procedures/adopt_table.sql
--! Included procedures/verify_adoption.sql
create or replace procedure fleet.verify_adoption(p_source regclass, inout p_state text default null)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;
  v_source := fleet.begin_verification(p_source);
  commit;
  call fleet.run_adoption(v_source, 5000, '0', p_state);
  if p_state <> 'verified' then
    raise warning using
      message = pg_catalog.format('%s differs from the store', v_source),
      hint = pg_catalog.format(
        'See select * from fleet.adoption_days where rows_missing + rows_changed > 0; take over what is missing: call fleet.adopt_table(%L);',
        v_source
      );
  end if;
end
$$;

comment on procedure fleet.verify_adoption(regclass, text) is
  'Compares a table that was moved with the store, day by day: each row is there with the same content, or its device and bucket have another heartbeat, or it was refused. Anything else is in fleet.adoption_days, and the state stays moved. Example: call fleet.verify_adoption(''public.device_heartbeats'');';
--! EndIncluded procedures/verify_adoption.sql
--! Included procedures/abandon_adoption.sql
create or replace procedure fleet.abandon_adoption(p_source regclass, inout p_state text default null)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;
  v_source := fleet.begin_abandoning(p_source);
  commit;
  call fleet.run_adoption(v_source, 5000, '0', p_state);
end
$$;

comment on procedure fleet.abandon_adoption(regclass, text) is
  'The way back: takes the trigger away and writes the heartbeats that the store received since the adoption began, and the table lacks, into the table. What was moved stays in the store. Called again, it writes back what came since. Example: call fleet.abandon_adoption(''public.device_heartbeats'');';
--! EndIncluded procedures/abandon_adoption.sql
--! Included views/adoption_progress.sql
create or replace view fleet.adoption_progress as
select a.source, a.state, a.step,
  exists (select from fleet.lock_holders('adoption') h where h = a.backend) and cardinality(a.steps) > 0 as is_running,
  case
    when cardinality(a.steps) = 0 then 100
    when a.step is null then 0
    when a.step_total > 0 then round(least(100.0 * a.step_done / a.step_total, 100), 1)
    else 100
  end as percent,
  round(a.step_rows / nullif(extract(epoch from a.updated_at - a.step_started_at), 0)) as rows_per_s,
  case
    when cardinality(a.steps) > 0 and a.step_done > a.step_from then
      date_trunc('second', a.updated_at + (a.updated_at - a.step_started_at) * (
        (a.step_total - a.step_done)::double precision / (a.step_done - a.step_from)
      ))
  end as step_ends_at,
  a.rows_read, a.rows_stored, a.rows_duplicate, a.rows_refused,
  d.rows_kept, d.rows_missing, d.rows_changed,
  a.rows_written_back, a.pass, a.started_at, a.updated_at, a.moved_at, a.verified_at, a.confirmed_at, a.abandoned_at, a.last_error
from fleet.adoptions a
left join lateral (
  select sum(d.rows_kept) as rows_kept, sum(d.rows_missing) as rows_missing, sum(d.rows_changed) as rows_changed
  from fleet.adoption_days d
  where d.source = a.source and d.checked_at is not null
) d on true
order by a.started_at desc;

comment on view fleet.adoption_progress is
  'Plain tables that are or were moved into the store, and how far each is: percent and end are those of the step (survey, partitions, move, verify, write_back), rows_read and so on those of the pass, rows_kept and so on those of the verification. Example: select source, state, step, percent, rows_per_s, step_ends_at from fleet.adoption_progress;';
--! EndIncluded views/adoption_progress.sql
--! Included grants.sql
-- Who may do what. Everything is revoked first, so that this file is the whole truth.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba;
grant usage on schema fleet_detached to fleet_reader, fleet_dba;
-- CREATE is what owning a table there takes.
grant usage, create on schema fleet_detached to fleet_archiver;

-- Heartbeats are never changed, not even by the owner: rows leave with their partition, once it is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.token_changes(xid8),
  fleet.recent_tokens(integer),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.metric_values()
to fleet_server;

grant execute on function
  fleet.list_devices(text, interval, bigint, integer),
  fleet.list_devices_legacy(text, interval, bigint, integer),
  fleet.marks_hold(interval),  -- what the view devices_offline calls
  fleet.expected_interval(interval, interval, interval, timestamptz, timestamptz),
  fleet.late_after(interval),
  fleet.derive_status(boolean, timestamptz, interval, interval, timestamptz),
  fleet.beats_missed(interval, interval),
  fleet.device_day(bigint, timestamptz),
  fleet.silence_at(timestamptz),  -- what the view fleet_silence calls
  fleet.job_history()  -- what the view job_health calls
to fleet_server, fleet_reader, fleet_dba;

grant execute on function
  fleet.create_device(text, text),
  fleet.enroll_device(text, text),
  fleet.revoke_device(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(timestamptz),
  -- What the procedures call with the rights of who calls them.
  fleet.begin_run(text),
  fleet.end_run(bigint, text, integer),
  fleet.do_step(text, text, timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.record_event(text, text, bigint, bigint, text, boolean, bigint),
  fleet.count_up(text, numeric),
  fleet.elapsed_ms(timestamptz),
  fleet.is_night_missed(timestamptz)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.maintain(bigint, timestamptz),
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_step(bigint, text, text, timestamptz, integer)
to fleet_server, fleet_dba;

grant execute on function
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
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.schedule_jobs(),
  fleet.renew_token(bigint),
  fleet.adoption_plan(regclass, jsonb, text, timestamptz),
  fleet.confirm_adoption(regclass),
  fleet.forget_adoption(text),
  fleet.refused_rows(regclass, integer),
  -- What the procedures of adoptions call with the rights of who calls them.
  fleet.begin_adoption(regclass, jsonb, text, timestamptz, boolean),
  fleet.begin_verification(regclass),
  fleet.begin_abandoning(regclass),
  fleet.adoption_step(text, integer),
  fleet.end_adoption(text, text),
  fleet.check_partitions(timestamptz),
  fleet.check_ingest(timestamptz),
  fleet.check_silence(timestamptz),
  fleet.check_scheduler(timestamptz),
  fleet.check_archive(timestamptz),
  fleet.check_sessions(timestamptz),
  fleet.check_storage(timestamptz),
  fleet.check_adoption(timestamptz),
  fleet.check_settings(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values()
to fleet_dba;

grant execute on procedure
  fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval),
  fleet.verify_adoption(regclass, text),
  fleet.abandon_adoption(regclass, text),
  fleet.run_adoption(text, integer, interval, text)
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.wake_archiver(text),
  fleet.content_checksum(regclass),
  fleet.checksum_expression(regclass),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz),
  fleet.record_upload(text, text, text, text, bigint),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.release_restore(text, text),
  fleet.fail_restore(text, text, text),
  fleet.adopt_archive(text, timestamptz, timestamptz, bigint, numeric, timestamptz, timestamptz, text, text, bigint)
to fleet_archiver;

grant select on
  fleet.device_status, fleet.device_status_legacy, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.job_health, fleet.fleet_silence,
  fleet.missed_beats, fleet.silence_samples, fleet.adoption_progress
to fleet_reader, fleet_dba;
-- For the ops page.
grant select on fleet.partition_health, fleet.archives, fleet.job_health to fleet_server;
-- What the view adoption_progress calls.
grant execute on function fleet.lock_holders(text) to fleet_reader, fleet_dba;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log, fleet.cohorts
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_requests, fleet.restore_items to fleet_archiver, fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers, fleet.silence_watch, fleet.silence_usual to fleet_dba;
grant select on fleet.adoptions, fleet.adoption_days, fleet.adoption_refusals to fleet_dba;
grant select, insert, update, delete on fleet.adoption_devices to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep, silence_window, silence_share, silence_ratio, silence_min_devices, ingest_gap
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql
