-- Call it before you lock the partition's row: comparing a large day takes seconds, and the archiver has to be able to renew its
-- lease in that row.
create or replace function fleet.compare_with_archive(p_partition text)
returns table (table_oid oid, row_count bigint, in_table text, in_archive text, differs boolean)
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
    select c.row_count, format('row hash %s', c.rows_hash), format('row hash %s', v_partition.rows_hash)
    into row_count, in_table, in_archive
    from fleet.count_rows(table_oid) c;
    differs := (row_count, in_table) is distinct from (v_partition.row_count, in_archive);
    -- On a machine with another byte order the same rows hash differently. If Postgres knows their content checksum, that decides.
    if not differs or v_partition.content_checksum is null then
      return next;
      return;
    end if;
  end if;
  -- A partition that was proven to be empty has no archive, and any version will do.
  select c.row_count, format('content checksum %s', c.content_checksum),
    format('content checksum %s', coalesce(v_partition.content_checksum, 0))
  into row_count, in_table, in_archive
  from fleet.content_checksum(table_oid, v_partition.columns, v_partition.checksum_version) c;
  differs := (row_count, in_table) is distinct from (coalesce(v_partition.row_count, 0), in_archive);
  return next;
end
$$;

comment on function fleet.compare_with_archive(text) is
  'Compares the rows of a retired table with what was recorded when they were archived, and blocks writers to the table until '
  'the end of the transaction. Returns no row if there is no table.';
