create or replace function fleet.form_of(p_object text) returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_object like '%)' then (select md5(p.prosrc) from pg_proc p where p.oid = to_regprocedure(p_object))
    else (select md5(pg_get_viewdef(c.oid)) from pg_class c where c.oid = to_regclass(p_object) and c.relkind = 'v')
  end;
$$;

comment on function fleet.form_of(text) is
  'A hash of the text of a function or view, by which fleet.check_nodes() compares nodes. '
  'Example: select fleet.form_of(''fleet.device_state'');';
