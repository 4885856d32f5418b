-- Runs with the caller's rights and in the caller's snapshot, so it sees the same rows as other statements of that transaction.
create or replace function fleet.content_checksum(
  p_table regclass,
  p_columns jsonb default null,
  p_checksum_version integer default null,
  out row_count bigint,
  out content_checksum numeric,
  out min_ts timestamptz,
  out max_ts timestamptz
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'select count(*), coalesce(sum(%s), 0), min(ts), max(ts) from %s',
    fleet.checksum_expression(p_table, p_columns, p_checksum_version), p_table
  ) into row_count, content_checksum, min_ts, max_ts;
end
$$;

comment on function fleet.content_checksum(regclass, jsonb, integer) is
  'Returns the number of rows of a partition, a checksum that does not depend on order or format, and the oldest and newest ts. '
  'p_columns: the columns to cover, as in fleet.hb_partitions.columns; default: all columns of the table. p_checksum_version: '
  'the definition to use; default: the newest. '
  'Example: select p.partition_name, c.* from fleet.partition_health p cross join '
  'fleet.content_checksum(format(''fleet_detached.%I'', p.partition_name)::regclass) c where p.state = ''detached'';';
