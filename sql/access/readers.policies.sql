-- Row-level security for the logins of fleet.create_reader(). For everybody else the first policy is the only one and always
-- true, so the planner drops it. The second one must hold too, but only for members of fleet_cohort_reader. The partitions of
-- fleet.device_heartbeats have no policies: nobody but the roles that see everything has rights on them; see grants.sql.
do $$
declare
  v_table record;
begin
  for v_table in
    select t.name, case when t.has_cohort
      then 'cohort = any ((select fleet.seen_cohorts())::text[])'
      else format(
        'exists (select from fleet.devices d where d.device_id = %I.device_id and d.cohort = any ((select fleet.seen_cohorts())::text[]))',
        t.name
      )
    end as condition
    from (values
      ('devices', true),
      ('cohorts', true),
      ('fleet_counts', true),
      ('device_transitions', true),
      ('device_last_status', false),
      ('device_heartbeats', false),
      ('device_commands', false),
      ('command_dispatch_log', false),
      ('device_availability_daily', false),
      ('device_unreadable_fields', false)
    ) as t (name, has_cohort)
  loop
    execute format('alter table fleet.%I enable row level security', v_table.name);
    execute format('drop policy if exists everybody on fleet.%I', v_table.name);
    execute format('create policy everybody on fleet.%I to public using (true) with check (true)', v_table.name);
    execute format(
      'comment on policy everybody on fleet.%I is ''Rights alone decide, except for members of fleet_cohort_reader.''', v_table.name
    );
    execute format('drop policy if exists seen_cohorts on fleet.%I', v_table.name);
    -- Citus refuses policies with subqueries; a distributed store has no such logins.
    continue when fleet.is_distributed();
    execute format(
      'create policy seen_cohorts on fleet.%I as restrictive to fleet_cohort_reader using (%s)', v_table.name, v_table.condition
    );
    execute format(
      'comment on policy seen_cohorts on fleet.%I is ''A login of fleet.create_reader() sees only the devices of its cohorts.''',
      v_table.name
    );
  end loop;
end
$$;
