create or replace function fleet.renew_erasure_lease(p_partition text, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.hb_partitions p
    set lease_until = now() + p_lease
    where p.partition_name = p_partition and p.lease_owner = p_worker and p.held_reason is null
      and exists (select from fleet.erasure_items i where i.partition_name = p.partition_name and i.archive_at is null)
    returning p.partition_name
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_erasure_lease(text, text, interval) is
  'Extends an archiver''s lease on an archive from which devices are erased. Returns false if the archiver no longer '
  'holds it, or the partition is held.';
