create or replace function fleet.renew_restore_lease(p_partition text, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.restore_items
    set lease_until = now() + p_lease
    where partition_name = p_partition and state = 'running' and lease_owner = p_worker
    returning partition_name
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_restore_lease(text, text, interval) is
  'Extends an archiver''s lease on a restore. Returns false if the archiver no longer holds it.';
