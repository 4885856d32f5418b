create or replace function fleet.drop_restoring(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('drop table if exists fleet.%I', fleet.restoring_name(p_partition));
end
$$;

comment on function fleet.drop_restoring(text) is
  'Drops the table that an unfinished restore has filled so far, if there is one. Its rows are in the proven archive.';
