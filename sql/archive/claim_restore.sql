create or replace function fleet.claim_restore(p_worker text, p_lease interval default '5 minutes')
returns table (
  request_id bigint, partition_name text, range_start timestamptz, range_end timestamptz, archive_url text,
  checksum_sha256 text, rows_sha256 text, content_checksum numeric, row_count bigint
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
  -- These partitions are already back: two requests named them, or a day without rows was created again. An archiver that is
  -- still working on one of them finds that out at its next step.
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
    -- The archive still holds a device that is being erased. The day is restored without it, afterwards.
    and not exists (
      select from fleet.erasure_items e where e.partition_name = i.partition_name and e.archive_at is null
    )
  order by i.request_id, i.partition_name
  limit 1
  for update skip locked;
  if not found then
    return;
  end if;
  -- Another request for the same partition may have been claimed a moment ago.
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
    select v_request_id, p.partition_name, p.range_start, p.range_end, p.archive_url, p.checksum_sha256, p.rows_sha256,
      p.content_checksum, p.row_count
    from fleet.hb_partitions p
    where p.partition_name = v_name;
end
$$;

comment on function fleet.claim_restore(text, interval) is
  'Gives this archiver a lease on the next partition that is to be restored. Returns no row if there is none.';
