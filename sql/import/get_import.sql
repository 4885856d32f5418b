create or replace function fleet.get_import(p_source regclass) returns fleet.imports
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports;
begin
  perform fleet.relink_tables();
  select f.* into a
  from fleet.imports f
  where f.relid = p_source
  for update;
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('%s is not being imported', coalesce(p_source::text, 'null')),
      hint = format(
        'See all imports: select * from fleet.import_progress; to begin one: call fleet.import_table(%L);', p_source::text
      );
  end if;
  return a;
end
$$;

comment on function fleet.get_import(regclass) is 'The import of a table, locked; raises an error if there is none.';
