create or replace function fleet.release_restore(p_partition text, p_worker text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update fleet.restore_items
  set state = 'pending', lease_owner = null, lease_until = null
  where partition_name = p_partition and state = 'running' and lease_owner = p_worker;
$$;

comment on function fleet.release_restore(text, text) is
  'Gives a restore back for another archiver: one that is stopped does so.';
