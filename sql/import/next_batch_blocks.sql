create or replace function fleet.next_batch_blocks(p_blocks integer, p_rows bigint, p_wanted integer) returns integer
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select greatest(1, least(p_blocks * 4, 8192, p_blocks::bigint * p_wanted / greatest(p_rows, 1)))::integer;
$$;

comment on function fleet.next_batch_blocks(integer, bigint, integer) is
  'How many blocks to read next to get the wanted number of rows, estimated from the last batch; at most four times as many as '
  'in the last batch.';
