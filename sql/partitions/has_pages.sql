create or replace function fleet.has_pages(p_table oid) returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '20ms'
as $$
begin
  return pg_relation_size(p_table) > 0;
exception when lock_not_available then
  return true;  -- nobody settles or rewrites an empty table
end
$$;

comment on function fleet.has_pages(oid) is
  'Whether a table has ever had a row. Does not wait while the table is locked against readers.';
