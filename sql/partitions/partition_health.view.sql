create or replace view fleet.partition_health as
select p.partition_name, p.range_start, p.range_end, p.state, p.step, p.row_count,
  fleet.bytes_of(p) as bytes_size,
  p.attempts, p.next_attempt_at, p.last_error, p.held_reason, p.lease_owner, p.lease_until, p.detached_at, p.proven_at,
  p.dropped_at, p.restored_at, p.archive_url, case when p.state <> 'dropped' then p.settled_at end as settled_at
from fleet.hb_partitions p
order by p.range_start desc;

comment on view fleet.partition_health is
  'Every partition that ever existed, newest first, with its state and its last error. '
  'Example: select * from fleet.partition_health where state = ''archive_failed'';';
