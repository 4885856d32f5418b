create or replace function fleet.claim_partition(p_worker text, p_lease interval default '5 minutes')
returns table (
  partition_name text, relid oid, table_name text, range_start timestamptz, range_end timestamptz, state text, step text,
  attempts integer, row_count bigint, rows_sha256 text, content_checksum numeric, checksum_sha256 text,
  archive_url text, archive_bytes bigint, min_ts timestamptz, max_ts timestamptz
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_name text;
begin
  select p.partition_name into v_name
  from fleet.hb_partitions p
  cross join fleet.settings s
  where p.held_reason is null
    and (p.lease_until is null or p.lease_until < now())
    -- An earlier archive loses the devices that are being erased before another one is made.
    and not (
      p.proven_at is not null and p.archive_url is not null
      and exists (select from fleet.erasure_items i where i.partition_name = p.partition_name and i.archive_at is null)
    )
    and (
      p.state in ('detached', 'archiving')
      or (p.state = 'archive_failed' and p.next_attempt_at <= now())
      or (p.state = 'archived' and p.proven_at + s.archive_grace <= now() and (s.proofs_needed = 1 or p.confirmed_at is not null))
    )
  order by p.range_start
  limit 1
  for update of p skip locked;
  if not found then
    return;
  end if;

  update fleet.hb_partitions p
  set state = case p.state when 'archived' then 'archived' else 'archiving' end,
    step = coalesce(p.step, 'claimed'),
    lease_owner = p_worker,
    lease_until = now() + p_lease
  where p.partition_name = v_name;
  perform fleet.record_event('partition.archive.start', v_name, p_detail => p_worker)
  from fleet.hb_partitions p
  where p.partition_name = v_name and p.state = 'archiving';

  return query
    select p.partition_name, fleet.table_of(p), format('fleet_detached.%I', p.partition_name), p.range_start, p.range_end,
      p.state, p.step, p.attempts, p.row_count, p.rows_sha256, p.content_checksum, p.checksum_sha256, p.archive_url,
      p.archive_bytes, p.min_ts, p.max_ts
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_partition(text, interval) is
  'Gives this archiver a lease on the oldest partition that is waiting to be archived or dropped. Returns no row if there is '
  'none.';
