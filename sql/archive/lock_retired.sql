-- What is copied and what is counted must be the same rows. Without the lock a superuser could change a row between the two, and
-- the archive would hold the old one.
create or replace function fleet.lock_retired(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '0'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
begin
  -- Without a lock on this row, in which the archiver renews its lease.
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s has no table that %s may archive', p_partition, p_worker),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  -- It waits for a VACUUM as long as that takes. LOCK TABLE requires the right to write, which nobody has here. This statement
  -- changes nothing, and blocks writers, but not readers, until the end of the transaction.
  execute format('alter table %s disable trigger user', v_table);
end
$$;

comment on function fleet.lock_retired(text, text) is
  'Archiving: keeps writers out of a retired table until the end of the transaction, so that the rows that are copied are those '
  'that fleet.count_retired() counts.';
