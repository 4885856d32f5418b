create or replace view fleet.erasure_progress as
select e.erasure_id, e.device_id, e.state, e.requested_at, e.requested_by, e.reason, e.rows_other, i.rows_online,
  i.rows_archived, i.partitions_left, i.archives_left, i.archives_rewritten, i.next_archives, e.finished_at,
  coalesce(e.last_error, i.last_error) as last_error
from fleet.erasures e
cross join lateral (
  select coalesce(sum(t.rows_online), 0)::bigint as rows_online, coalesce(sum(t.rows_archived), 0)::bigint as rows_archived,
    count(*) filter (where t.online_at is null) as partitions_left,
    count(*) filter (where t.archive_at is null and p.archive_url is not null) as archives_left,
    count(*) filter (where t.rows_archived > 0) as archives_rewritten,
    (array_agg(p.archive_url order by p.range_start) filter (where t.archive_at is null and p.archive_url is not null))[1:10]
      as next_archives,
    (
      array_agg(format('%s: %s', t.partition_name, w.reason) order by p.range_start) filter (where w.reason is not null)
    )[1] as last_error
  from fleet.erasure_items t
  join fleet.hb_partitions p using (partition_name)
  cross join lateral (
    select coalesce(
      t.last_error,
      case
        when t.online_at is not null and t.archive_at is not null then null
        when p.held_reason is not null then 'is held: ' || p.held_reason
        when p.state = 'archive_failed' then 'waits for its archive, which failed: ' || p.last_error
      end
    ) as reason
  ) w
  where t.erasure_id = e.erasure_id
) i
order by e.erasure_id;

comment on view fleet.erasure_progress is
  'Every erasure: of which device, by whom and why, how many rows were deleted, which partitions and archives are left (the next '
  'ten by name), and what went wrong last. Example: select * from fleet.erasure_progress where state = ''running'';';
