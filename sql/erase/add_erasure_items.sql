create or replace function fleet.add_erasure_items(p_erasure_id bigint, p_partition text default null) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.erasure_items as i (erasure_id, partition_name)
  select p_erasure_id, p.partition_name
  from fleet.hb_partitions p
  where (p_partition is null or p.partition_name = p_partition)
    and (p.state <> 'dropped' or p.archive_url is not null)
  order by p.partition_name
  on conflict on constraint erasure_items_pkey do update
    set online_at = null,
      -- An archive that was made or registered since then has to be read again. What is in progress goes on.
      (archive_at, recorded_at, confirmed_at) = (
        select
          case when i.archive_at >= p.proven_at then i.archive_at end,
          case when i.archive_at is null or i.archive_at >= p.proven_at then i.recorded_at end,
          case when i.archive_at is null or i.archive_at >= p.proven_at then i.confirmed_at end
        from fleet.hb_partitions p
        where p.partition_name = i.partition_name
      ),
      attempts = 0, next_attempt_at = null, last_error = null;
$$;

comment on function fleet.add_erasure_items(bigint, text) is
  'Notes which partitions and archives an erasure has to go through: all, or the one that is given. What was done before and has '
  'not changed stays done.';
