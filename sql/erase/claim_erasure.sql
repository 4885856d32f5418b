-- The lease is that of the partition, so nobody archives it meanwhile. All devices that wait for an archive go in one revision.
create or replace function fleet.claim_erasure(p_worker text, p_lease interval default '5 minutes')
returns table (
  partition_name text, range_start timestamptz, range_end timestamptz, device_ids bigint[], is_recorded boolean,
  archive_url text, archive_bytes bigint, checksum_sha256 text, row_count bigint, columns jsonb, columns_at timestamptz,
  leftovers text[]
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_name text;
  v_is_recorded boolean;
begin
  select p.partition_name, i.is_recorded into v_name, v_is_recorded
  from fleet.hb_partitions p
  cross join fleet.settings s
  cross join lateral (
    select bool_or(i.recorded_at is not null) as is_recorded,
      bool_or(i.recorded_at is not null and i.confirmed_at is null) as is_unconfirmed,
      bool_or(i.recorded_at is null and (i.next_attempt_at is null or i.next_attempt_at <= now())) as is_due,
      bool_or(i.recorded_at is not null and (i.next_attempt_at is null or i.next_attempt_at <= now())) as is_deletion_due,
      bool_or(i.online_at is null) as is_online
    from fleet.erasure_items i
    where i.partition_name = p.partition_name and i.archive_at is null
  ) i
  where p.archive_url is not null and p.proven_at is not null and p.held_reason is null
    and (p.lease_until is null or p.lease_until < now())
    -- One revision after the other: the file that the last one replaced goes first.
    and case when i.is_recorded
      then i.is_deletion_due and (s.proofs_needed = 1 or not i.is_unconfirmed)
      else i.is_due
    end
    -- Otherwise the day could be archived again, with the device, after this.
    and (p.state not in ('active', 'restored') or not i.is_online)
    and not exists (
      select from fleet.restore_items o
      where o.partition_name = p.partition_name and o.state = 'running' and o.lease_until >= now()
    )
  order by p.range_start
  limit 1
  for update of p skip locked;
  if not found then
    return;
  end if;
  -- A restore that was cut short begins again later, with the new archive.
  update fleet.restore_items o
  set state = 'pending', lease_owner = null, lease_until = null
  where o.partition_name = v_name and o.state = 'running';
  update fleet.hb_partitions p
  set lease_owner = p_worker, lease_until = now() + p_lease
  where p.partition_name = v_name;
  return query
    select p.partition_name, p.range_start, p.range_end, array_agg(e.device_id order by e.device_id), v_is_recorded,
      p.archive_url, p.archive_bytes, p.checksum_sha256, p.row_count, p.columns, p.columns_at,
      (
        select array_agg(distinct k.key)
        from fleet.erasure_items o
        cross join unnest(o.leftovers) k (key)
        where o.partition_name = v_name and o.recorded_at is not null and o.archive_at is null
      )
    from fleet.hb_partitions p
    join fleet.erasure_items i on i.partition_name = p.partition_name and i.archive_at is null
      and (i.recorded_at is not null) = v_is_recorded
    join fleet.erasures e using (erasure_id)
    where p.partition_name = v_name
    group by p.partition_name;
end
$$;

comment on function fleet.claim_erasure(text, interval) is
  'Gives this archiver a lease on the next archive that may hold devices that are to be erased, and returns these devices. With '
  'is_recorded, the new revision is recorded and only the objects in leftovers are to be deleted. Returns no row if there is '
  'none.';
