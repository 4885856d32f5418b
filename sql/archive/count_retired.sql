-- A drop relies on this count, so it is made with the owner's rights. What the archiver says that it copied is compared with it.
create or replace function fleet.count_retired(
  p_partition text,
  p_worker text,
  p_row_count bigint,
  p_rows_sha256 text,
  p_columns jsonb default null,
  out row_count bigint,
  out rows_hash numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_variable
declare
  v_partition fleet.hb_partitions;
  v_table regclass;
  v_columns jsonb;
begin
  select p.* into v_partition
  from fleet.hb_partitions p
  where p.partition_name = p_partition and p.lease_owner = p_worker and p.state = 'archiving';
  v_table := fleet.table_of(v_partition);
  if v_table is not null then
    -- Counting a large day takes seconds, so it happens before the row is locked, and the archiver can renew its lease meanwhile.
    select jsonb_agg(jsonb_build_object('name', c.name, 'type', c.type) order by c.position) into v_columns
    from fleet.archive_columns(v_table) c;
    select c.row_count, c.rows_hash, c.min_ts, c.max_ts into row_count, rows_hash, min_ts, max_ts
    from fleet.count_rows(v_table) c;
  end if;

  v_partition := fleet.check_lease(p_partition, p_worker);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s has no table to archive', p_partition),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if p_row_count is distinct from row_count or coalesce(p_columns, v_columns) <> v_columns then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s has %s rows, but %s says that it copied %s; nothing is archived',
        p_partition, row_count, p_worker, coalesce(p_row_count::text, 'nothing')
      ),
      detail = format('columns of the table: %s; columns copied: %s', v_columns, coalesce(p_columns, v_columns)),
      hint = format(
        'The table was changed while it was copied, or the archiver cannot be trusted. Hold the partition while you look: '
        'select fleet.hold_partition(%L, ''why'');', p_partition
      );
  end if;
  if p_rows_sha256 is null or p_rows_sha256 !~ '^[0-9a-f]{64}$' then
    raise exception using
      errcode = 'FL422',
      message = format('%s is not a SHA-256 in hex; nothing is archived', coalesce(p_rows_sha256, 'null')),
      hint = 'The archiver has to be of the version of this database.';
  end if;
  if min_ts < v_partition.range_start or max_ts >= v_partition.range_end then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s covers %s to %s, but its rows range from %s to %s',
        p_partition, v_partition.range_start, v_partition.range_end, min_ts, max_ts
      ),
      hint = format(
        'The table was changed after it was retired. Hold the partition while you look: '
        'select fleet.hold_partition(%L, ''why'');', p_partition
      );
  end if;
  update fleet.hb_partitions p
  set counted = jsonb_build_object(
    'row_count', count_retired.row_count, 'rows_hash', count_retired.rows_hash::text, 'min_ts', count_retired.min_ts,
    'max_ts', count_retired.max_ts, 'rows_sha256', p_rows_sha256, 'columns', v_columns
  )
  where p.partition_name = p_partition;
end
$$;

comment on function fleet.count_retired(text, text, bigint, text, jsonb) is
  'Archiving: counts and hashes the rows of a retired table, with the owner''s rights, and compares the count and the columns '
  'with what the archiver says that it copied. Records that together with the archiver''s SHA-256 of the rows. The proof and the '
  'drop are compared with this.';
