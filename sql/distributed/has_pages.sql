create or replace function fleet.has_pages(p_table oid) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '20ms'
as $$
declare
  v_has_rows boolean;
begin
  if not exists (select from pg_catalog.pg_dist_partition d where d.logicalrelid = p_table) then
    return pg_relation_size(p_table) > 0;
  end if;
  -- The files of the table are on the workers.
  execute format('select exists (select 1 from %s)', p_table::regclass) into v_has_rows;
  return v_has_rows;
exception when lock_not_available then
  return true;  -- nobody settles or rewrites an empty table
end
$$;

comment on function fleet.has_pages(oid) is
  'The form of fleet.has_pages() for a distributed store: whether a table has a row on any node.';
