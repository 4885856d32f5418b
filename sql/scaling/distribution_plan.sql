create or replace function fleet.distribution_plan()
returns table (nth integer, step text, kind text, bytes bigint, is_done boolean)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_is_possible boolean := exists (select from pg_extension where extname = 'citus');
  v_step record;
begin
  nth := 0;
  for v_step in
    select *
    from (values
      ('close', 'close', null),
      -- Citus sends the views of a table with it, and they call functions. Some functions take rows of a table, so they follow it.
      ('functions', 'functions', null),
      ('settings', 'reference', 'fleet.settings'),
      ('cohorts', 'reference', 'fleet.cohorts'),
      ('gateways', 'reference', 'fleet.gateways'),
      ('devices', 'reference', 'fleet.devices'),
      ('device_last_status', 'distributed', 'fleet.device_last_status'),
      ('device_heartbeats', 'distributed', 'fleet.device_heartbeats'),
      ('late_arrivals', 'distributed', 'fleet.late_arrivals'),
      ('heartbeat_quarantine', 'distributed', 'fleet.heartbeat_quarantine'),
      ('device_availability_daily', 'distributed', 'fleet.device_availability_daily'),
      ('device_commands', 'distributed', 'fleet.device_commands'),
      ('command_dispatch_log', 'distributed', 'fleet.command_dispatch_log'),
      ('device_unreadable_fields', 'distributed', 'fleet.device_unreadable_fields'),
      ('device_slowdowns', 'distributed', 'fleet.device_slowdowns'),
      ('other_functions', 'functions', null),
      ('clean_up', 'clean_up', null)
    ) as v (step, kind, relation)
  loop
    nth := nth + 1;
    step := v_step.step;
    kind := v_step.kind;
    is_done := false;
    bytes := null;
    if v_step.relation is not null then
      bytes := (
        select sum(pg_total_relation_size(t.relid)) from pg_partition_tree(v_step.relation::regclass) t where t.isleaf
      );
    end if;
    if v_is_possible then
      -- The names of Citus are known only to a database that has it.
      execute case v_step.kind
        when 'close' then 'select fleet.is_distributed()'
        when 'functions' then
          $query$
            select exists (
              select from pg_catalog.pg_dist_object o
              where o.classid = 'pg_catalog.pg_proc'::regclass
                and o.objid = $1::regprocedure
            )
          $query$
        when 'clean_up' then
          $query$
            select exists (select from pg_catalog.pg_dist_partition d where d.logicalrelid = to_regclass('fleet.device_slowdowns'))
              and not exists (
                select
                from pg_catalog.pg_dist_partition d
                join pg_catalog.pg_class c on c.oid = d.logicalrelid
                where c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and (d.partmethod = 'h' or d.repmodel = 't')
                  and pg_relation_size(c.oid) > 0
              )
          $query$
        else 'select exists (select from pg_catalog.pg_dist_partition d where d.logicalrelid = to_regclass($1))'
      end into is_done using case v_step.step
        when 'functions' then 'fleet.beats_missed(interval, interval)'
        when 'other_functions' then 'fleet.upsert_last_status(fleet.device_heartbeats[], boolean)'
        else v_step.relation
      end;
    end if;
    return next;
  end loop;
end
$$;

comment on function fleet.distribution_plan() is
  'The steps in which fleet.distribute() distributes this store, with the size of each table, and which are done. '
  'Example: select * from fleet.distribution_plan();';
