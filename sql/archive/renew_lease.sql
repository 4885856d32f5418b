create or replace function fleet.renew_lease(p_partition text, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.hb_partitions
    set lease_until = now() + p_lease
    where partition_name = p_partition and lease_owner = p_worker and state in ('archiving', 'archived')
    returning partition_name
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_lease(text, text, interval) is
  'Extends an archiver''s lease. Returns false if the archiver no longer holds it.';
