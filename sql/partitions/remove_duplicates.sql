create or replace function fleet.remove_duplicates(p_partition text) returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select format(
    'delete from fleet.%1$I a using fleet.%1$I b where a.device_id = b.device_id '
    'and fleet.heartbeat_bucket(a.ts) = fleet.heartbeat_bucket(b.ts) '
    'and (a.received_at, a.ctid) > (b.received_at, b.ctid);',
    p_partition
  );
$$;

comment on function fleet.remove_duplicates(text) is
  'The statement, for a superuser, that deletes the duplicates of a partition that had no dedupe key. Of each it keeps the one '
  'that arrived first.';
