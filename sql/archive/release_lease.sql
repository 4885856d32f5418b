create or replace function fleet.release_lease(p_partition text, p_worker text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update fleet.hb_partitions
  set state = case state when 'archiving' then 'detached' else state end, lease_owner = null, lease_until = null
  where partition_name = p_partition and lease_owner = p_worker and state in ('archiving', 'archived');
$$;

comment on function fleet.release_lease(text, text) is
  'Gives a partition back, with the steps that were finished. An archiver calls it when it is stopped.';
