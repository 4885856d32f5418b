-- Runs after everything else here, and after each migration, which grants what a plain store grants.
do $$
declare
  v_table regclass;
begin
  -- Row-level security with a subquery is not possible on distributed tables, so nobody may have the rights that need it.
  for v_table in
    select c.oid
    from pg_catalog.pg_class c
    where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
      and (
        pg_catalog.has_table_privilege('fleet_cohort_reader', c.oid, 'select')
        or pg_catalog.has_any_column_privilege('fleet_cohort_reader', c.oid, 'select')
      )
  loop
    execute pg_catalog.format('revoke select on %s from fleet_cohort_reader', v_table);
  end loop;
end
$$;

-- Those who may read the views that are refused may read why.
grant execute on function fleet.refuse_distributed(text) to fleet_server, fleet_reader, fleet_dba, fleet_verifier;
