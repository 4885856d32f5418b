create or replace function fleet.check_erasure_lease(p_partition text, p_worker text, p_device_ids bigint[] default '{}')
returns fleet.hb_partitions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.lease_owner is distinct from p_worker or v_partition.proven_at is null or v_partition.archive_url is null then
    raise exception using
      errcode = 'FL003',
      message = format(
        'partition %s is %s and leased to %s, not to %s',
        p_partition, v_partition.state, coalesce(v_partition.lease_owner, 'nobody'), coalesce(p_worker, 'null')
      ),
      hint = 'The lease ran out and another archiver may have taken it: stop working on this archive.';
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s), and its archive is not changed', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if not exists (select from fleet.erasure_items i where i.partition_name = p_partition and i.archive_at is null)
    or exists (
      select from unnest(p_device_ids) d (device_id)
      where not exists (
        select from fleet.erasure_items i
        join fleet.erasures e using (erasure_id)
        where i.partition_name = p_partition and i.archive_at is null and i.recorded_at is null and e.device_id = d.device_id
      )
    ) then
    raise exception using
      errcode = 'FL002',
      message = format('no erasure covers these devices in the archive of %s; it stays as it is', p_partition),
      hint = 'Claim it first with fleet.claim_erasure().';
  end if;
  return v_partition;
end
$$;

comment on function fleet.check_erasure_lease(text, text, bigint[]) is
  'Returns the partition''s row, locked, if this archiver holds its lease, it is not held, and an erasure of each of these '
  'devices has to go through its archive. Raises an error otherwise.';
