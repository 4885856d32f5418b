create or replace function fleet.check_lease(p_partition text, p_worker text) returns fleet.hb_partitions
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state <> 'archiving' or v_partition.lease_owner is distinct from p_worker then
    raise exception using
      errcode = 'FL003',
      message = format(
        'partition %s is %s and leased to %s, not to %s',
        p_partition, v_partition.state, coalesce(v_partition.lease_owner, 'nobody'), p_worker
      ),
      hint = 'The lease ran out and another archiver may have taken it: stop working on this partition.';
  end if;
  return v_partition;
end
$$;

comment on function fleet.check_lease(text, text) is
  'Returns the partition''s row, locked, if this archiver holds its lease. Raises an error otherwise.';
