create or replace function fleet.count_rows(
  p_table regclass,
  out row_count bigint,
  out rows_hash numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'select count(*), coalesce(sum(hash_record_extended(t, 0)), 0), min(t.ts), max(t.ts) from only %s t', p_table
  ) into row_count, rows_hash, min_ts, max_ts;
end
$$;

comment on function fleet.count_rows(regclass) is
  'Returns the number of rows of a partition, a sum of 64-bit hashes of its rows, and the oldest and newest ts. Two counts of one '
  'table show quickly whether a row has changed. The hash depends on the columns and their order, and on the byte order of the '
  'machine. Example: select p.partition_name, c.* from fleet.partition_health p cross join '
  'fleet.count_rows(format(''fleet_detached.%I'', p.partition_name)::regclass) c where p.state = ''detached'';';
