-- Call it before you lock the partition's row: the checksum of a large day takes many seconds, and the archiver has to be able to
-- renew its lease in that row.
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
      message = format(
        'this transaction is %s and would not see rows that were written since it began', current_setting('transaction_isolation')
      ),
      hint = 'Call it in a read committed transaction of its own.';
  end if;
  perform fleet.relink_tables();  -- so that a renamed table does not count as gone
  select * into v_partition from fleet.hb_partitions p where p.partition_name = p_partition;
  table_oid := fleet.table_of(v_partition);
  if table_oid is null then
    return;
  end if;
  -- LOCK TABLE requires the right to write, which nobody has here. This statement changes nothing. It blocks writers, but not
  -- readers, until the end of the transaction.
  execute format('alter table %s disable trigger user', table_oid::regclass);
  if v_partition.rows_hash is not null then
    execute format('select count(*) from only %s', table_oid::regclass) into row_count;
    if row_count = v_partition.row_count and fleet.rows_hash(table_oid) = v_partition.rows_hash then
      content_checksum := v_partition.content_checksum;
      differs := false;
      return next;
      return;
    end if;
  end if;
  -- If there is no hash, or it differs, the slow comparison decides: after a dump and restore the same rows may hash differently.
  -- Without an archive there is no version either; any will do then.
  select c.row_count, c.content_checksum into row_count, content_checksum
  from fleet.content_checksum(table_oid, v_partition.columns, v_partition.checksum_version) c;
  -- A partition that was proven to be empty has no archive.
  differs := (row_count, content_checksum)
    is distinct from (coalesce(v_partition.row_count, 0), coalesce(v_partition.content_checksum, 0));
  return next;
end
$$;

comment on function fleet.compare_with_archive(text) is
  'Compares the rows of a retired table with the count and checksum of its archive, and blocks writers to the table until the '
  'end of the transaction. Returns no row if there is no table.';
