-- Before the row of the partition is locked: the checksum of a large day takes many seconds, in which the archiver renews its lease.
create or replace function fleet.compare_with_archive(p_partition text)
returns table (table_oid oid, row_count bigint, content_checksum numeric, differs boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_partition fleet.hb_partitions;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'FL002',
      message = format('this transaction is %s, and would not see what was written since it began', current_setting('transaction_isolation')),
      hint = 'Call it in a transaction of its own, which is read committed.';
  end if;
  perform fleet.relink_tables();  -- what is not found is about to be called gone
  select * into v_partition from fleet.hb_partitions p where p.partition_name = p_partition;
  table_oid := fleet.table_of(v_partition);
  if table_oid is null then
    return;
  end if;
  -- Only who may write may LOCK TABLE, and nobody may write here. This changes nothing, and keeps writers out until the end of the
  -- transaction, but not readers.
  execute format('alter table %s disable trigger user', table_oid::regclass);
  select c.row_count, c.content_checksum into row_count, content_checksum
  from fleet.content_checksum(table_oid, v_partition.columns, coalesce(v_partition.checksum_version, 1)) c;
  -- One that was proven to be empty has no archive.
  differs := (row_count, content_checksum)
    is distinct from (coalesce(v_partition.row_count, 0), coalesce(v_partition.content_checksum, 0));
  return next;
end
$$;

comment on function fleet.compare_with_archive(text) is
  'Compares a retired table, row by row, with what fleet.hb_partitions says of its archive, and keeps writers out of it until the end of the transaction. No row when there is no table.';
