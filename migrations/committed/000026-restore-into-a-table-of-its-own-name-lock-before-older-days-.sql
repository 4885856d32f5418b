--! Previous: sha1:2c5037d8defca07ca4d8eaeec2805b0ef8109f75
--! Hash: sha1:d07c897d4bee20601de45269b1f0898da4acf781
--! Message: Restore into a table of its own name; lock before older days are set aside

--! Included functions/restoring_name.sql
-- A name of its own: a day without rows may be made anew while it is restored, and is then retired under its own name.
create or replace function fleet.restoring_name(p_partition text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select left('restoring_' || p_partition, 63);
$$;

comment on function fleet.restoring_name(text) is
  'The table in schema fleet that a restore is copied into, until it is proven and becomes the partition.';
--! EndIncluded functions/restoring_name.sql
--! Included functions/drop_restoring.sql
create or replace function fleet.drop_restoring(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('drop table if exists fleet.%I', fleet.restoring_name(p_partition));
end
$$;

comment on function fleet.drop_restoring(text) is
  'Drops what a restore has copied in so far, if anything; the rows are in the proven archive.';
--! EndIncluded functions/drop_restoring.sql
--! Included functions/begin_restore.sql
create or replace function fleet.begin_restore(p_partition text, p_worker text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_table text := fleet.restoring_name(p_partition);
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'dropped' or not exists (
    select from fleet.restore_items i
    where i.partition_name = p_partition and i.state = 'running' and i.lease_owner = p_worker
  ) then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is %s; %s may not restore it', p_partition, v_partition.state, p_worker),
      hint = 'Claim it first with fleet.claim_restore().';
  end if;
  -- A try that was cut short left its table.
  perform fleet.drop_restoring(p_partition);
  execute format('create table fleet.%I (like fleet.device_heartbeats including defaults including comments)', v_table);
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_restore(text, text) is
  'Makes the empty table that a restore is copied into, and returns its name.';
--! EndIncluded functions/begin_restore.sql
--! Included functions/finish_restore.sql
create or replace function fleet.finish_restore(p_partition text, p_worker text) returns void
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

  select * into v_got from fleet.content_checksum(v_table);
  if (v_got.row_count, v_got.content_checksum, v_got.min_ts, v_got.max_ts) is distinct from (
    v_partition.row_count, v_partition.content_checksum, v_partition.min_ts, v_partition.max_ts
  ) then
    raise exception using
      errcode = 'FL010',
      message = format('the restored rows of %s differ from what was archived; it is not attached', p_partition),
      detail = format(
        'rows %s, restored %s; content checksum %s, restored %s',
        v_partition.row_count, v_got.row_count, v_partition.content_checksum, v_got.content_checksum
      ),
      hint = 'Check the object with: npm run archive -- verify';
  end if;

  execute format('alter table %s rename to %I', v_table, p_partition);
  update fleet.hb_partitions set relid = v_table where partition_name = p_partition;
  perform fleet.bind_range(p_partition);
  perform partman.inherit_template_properties('fleet.device_heartbeats', 'fleet', p_partition);
  execute format(
    'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
    v_table, v_partition.range_start, v_partition.range_end
  );
  execute format('revoke all on %s from fleet_archiver', v_table);
  execute format('analyze %s', v_table);

  update fleet.hb_partitions
  set state = 'restored', step = null, restored_at = now(), bytes_size = pg_total_relation_size(v_table)
  where partition_name = p_partition;
  update fleet.restore_items
  set state = 'done', finished_at = now(), lease_owner = null, lease_until = null, last_error = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  perform fleet.record_event('partition.restore', p_partition, v_got.row_count);
end
$$;

comment on function fleet.finish_restore(text, text) is
  'Compares the restored rows with what was archived, indexes and attaches them; state restored.';
--! EndIncluded functions/finish_restore.sql
--! Included functions/fail_restore.sql
create or replace function fleet.fail_restore(p_partition text, p_worker text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  update fleet.restore_items
  set state = case when v_partition.state = 'dropped' then 'failed' else 'done' end,
    finished_at = now(), last_error = p_error, lease_owner = null, lease_until = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
  if not found then
    return;
  end if;
  perform fleet.drop_restoring(p_partition);
  if v_partition.state = 'dropped' then
    perform fleet.record_event('partition.restore.failed', p_partition, p_detail => p_error, p_is_ok => false);
  end if;
end
$$;

comment on function fleet.fail_restore(text, text, text) is
  'A restore failed: keeps the reason and removes the half-filled table. The archive is untouched. A day that is back by other means counts as done.';
--! EndIncluded functions/fail_restore.sql
--! Included functions/claim_restore.sql
create or replace function fleet.claim_restore(p_worker text, p_lease interval default '5 minutes')
returns table (
  request_id bigint, partition_name text, range_start timestamptz, range_end timestamptz, archive_url text,
  checksum_sha256 text, content_checksum numeric, row_count bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_request_id bigint;
  v_name text;
begin
  -- Back meanwhile: asked for twice, or, a day without rows, made anew. Who still works on it finds that out.
  for v_name in
    update fleet.restore_items i
    set state = 'done', finished_at = now(), last_error = null, lease_owner = null, lease_until = null
    from fleet.hb_partitions p
    where p.partition_name = i.partition_name
      and p.state <> 'dropped'
      and (i.state = 'pending' or i.state = 'running' and i.lease_until < now())
    returning i.partition_name
  loop
    perform fleet.drop_restoring(v_name);
  end loop;

  select i.request_id, i.partition_name into v_request_id, v_name
  from fleet.restore_items i
  where (i.state = 'pending' or i.state = 'running' and i.lease_until < now())
    and not exists (
      select from fleet.restore_items o
      where o.partition_name = i.partition_name and o.state = 'running' and o.lease_until >= now()
    )
  order by i.request_id, i.partition_name
  limit 1
  for update skip locked;
  if not found then
    return;
  end if;
  -- The other request for it may have been claimed in this moment.
  perform fleet.get_partition(v_name);
  if exists (
    select from fleet.restore_items o
    where o.partition_name = v_name and o.state = 'running' and o.lease_until >= now()
  ) then
    return;
  end if;

  update fleet.restore_items i
  set state = 'running', lease_owner = p_worker, lease_until = now() + p_lease
  where i.request_id = v_request_id and i.partition_name = v_name;

  return query
    select v_request_id, p.partition_name, p.range_start, p.range_end, p.archive_url, p.checksum_sha256, p.content_checksum,
      p.row_count
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_restore(text, interval) is
  'Leases the next partition that was asked back to this archiver; no row when there is none.';
--! EndIncluded functions/claim_restore.sql
--! Included functions/retire_partition.sql
-- pg_partman detaches by age alone. What is older and attached (held, restored and late days) is set aside and put back in
-- the same transaction, under the parent's lock that the detach takes anyway; its CHECK constraint makes putting it back
-- a matter of the catalog.
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

  -- Locked before it is looked at, so that no restore attaches an older day in between, for pg_partman to take along. Only who may
  -- write may LOCK TABLE, and the owner may not: this changes nothing and takes the same lock.
  alter table only fleet.device_heartbeats disable row level security;
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
    p_reference_timestamp => v_partition.range_end + interval '1 microsecond'
  );

  for v_kept in select a.relid, a.range_start, a.range_end from unnest(v_aside, v_starts, v_ends) as a (relid, range_start, range_end) loop
    execute format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L)',
      v_kept.relid::regclass, v_kept.range_start, v_kept.range_end
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

-- What restores have left under the name of their partition, which stands in its way when it is retired.
do $$
declare
  v_name text;
begin
  for v_name in
    select p.partition_name
    from pg_class c
    join fleet.hb_partitions p on p.partition_name = c.relname
    where c.relnamespace = 'fleet_detached'::regnamespace
      and c.relkind = 'r'
      -- Retired ones are the archiver's.
      and c.relowner = 'fleet_owner'::regrole
      and not exists (select from fleet.hb_partitions k where k.relid = c.oid)
  loop
    execute format('alter table fleet_detached.%I rename to %I', v_name, fleet.restoring_name(v_name));
    execute format('alter table fleet_detached.%I set schema fleet', fleet.restoring_name(v_name));
    -- One that runs goes on with it.
    if not exists (select from fleet.restore_items i where i.partition_name = v_name and i.state = 'running') then
      perform fleet.drop_restoring(v_name);
    end if;
  end loop;
end
$$;
