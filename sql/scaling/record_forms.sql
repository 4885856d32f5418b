create or replace function fleet.record_forms(p_names text[]) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  delete from fleet.recorded_forms;
  insert into fleet.recorded_forms (object, form)
  select o.object, fleet.form_of(o.object)
  from (
    select p.oid::regprocedure::text as object
    from pg_proc p
    where p.pronamespace = 'fleet'::regnamespace and p.proname = any (p_names)
    union all
    select c.oid::regclass::text
    from pg_class c
    where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'v' and c.relname = any (p_names)
  ) o;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;

comment on function fleet.record_forms(text[]) is
  'Records the forms that npm run migrate has installed in a distributed store, so that fleet.check() notices others; returns how many. '
  'Example: select fleet.record_forms(array[''ingest_batch'', ''device_state'']);';
