-- One transaction for each step, so that it can be stopped between any two, and goes on from there.
create or replace function fleet.distribute_step(p_step text, p_shards integer default 32) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set client_min_messages = 'warning'
as $$
declare
  v_step record;
  v_problem record;
  v_table regclass;
  v_triggers text[];
  v_trigger text;
  v_rows_before bigint;
  v_hash_before numeric;
  v_rows bigint;
  v_hash numeric;
  v_sum constant text := 'select count(*) as rows, sum(hash_record_extended(t, 0)::numeric) as hash from %s t';
  v_definition text;
  v_count integer := 0;
begin
  if p_shards is null or p_shards < 1 or p_shards > 1024 then
    raise exception using
      errcode = 'FL422',
      message = format('%s shards are not between 1 and 1024', coalesce(p_shards::text, 'null')),
      hint = 'Give two to four times as many as the cluster will ever have cores: call fleet.distribute(32);';
  end if;
  select * into v_step from fleet.distribution_plan() p where p.step = p_step;
  if v_step.step is null then
    raise exception using
      errcode = 'FL404',
      message = format('there is no step %s', coalesce(p_step, 'null')),
      hint = 'The steps are in: select * from fleet.distribution_plan();';
  end if;
  if v_step.is_done then
    return 'done before';
  end if;
  if exists (select from fleet.distribution_plan() p where p.nth < v_step.nth and not p.is_done) then
    raise exception using
      errcode = 'FL002',
      message = format('step %s comes after others that are not done', p_step),
      hint = 'All of them, in order: call fleet.distribute();';
  end if;
  perform set_config('citus.enable_unsafe_triggers', 'on', true);
  if v_step.kind = 'close' then
    for v_problem in select * from fleet.distribution_problems() loop
      raise exception using
        errcode = 'FL002',
        message = 'this store cannot be distributed now: ' || v_problem.problem,
        hint = v_problem.remedy;
    end loop;
    -- From here until npm run distribute ends, heartbeats are answered with 503, and devices send them again.
    revoke execute on function fleet.ingest_batch(json, timestamptz, bytea[], integer[]) from fleet_server;
    revoke execute on function fleet.ingest(json, timestamptz) from fleet_server, fleet_dba;
    if exists (select from pg_extension where extname = 'pg_cron') then
      execute $jobs$
        select cron.unschedule(j.jobid) from cron.job j where j.jobname like 'fleet-%' and j.username = current_user
      $jobs$;
    end if;
    -- Citus refuses policies with subqueries. There are no logins that need them.
    for v_table in select p.polrelid from pg_policy p where p.polname = 'seen_cohorts' loop
      execute format('drop policy seen_cohorts on %s', v_table);
    end loop;
    create table fleet.online_ranges (
      range_start timestamptz not null,
      range_end timestamptz not null,
      is_settled boolean not null,
      constraint online_ranges_pkey primary key (range_start)
    );
    comment on table fleet.online_ranges is
      'The days that are online, for the ingest of each node of a distributed store; kept by a trigger on fleet.hb_partitions.';
    execute format(
      'insert into fleet.%I (range_start, range_end, is_settled) '
      'select p.range_start, p.range_end, p.settled_at is not null '
      'from fleet.hb_partitions p '
      'where p.state in (''active'', ''restored'') and p.relid is not null',
      'online_ranges'
    );
    execute format('select create_reference_table(%L)', 'fleet.online_ranges');
    perform fleet.audit('store.distributing', 'store:fleet', p_after => jsonb_build_object('shards', p_shards));
    return 'ingest is closed';
  end if;

  if v_step.kind in ('reference', 'distributed') then
    v_table := format('fleet.%I', p_step)::regclass;
    -- Nobody writes meanwhile. LOCK TABLE needs the right to write, which the owner does not have on heartbeats; row-level security is
    -- always on there.
    if p_step = 'device_heartbeats' then
      alter table only fleet.device_heartbeats enable row level security;
    else
      execute format('lock table %s in share row exclusive mode', v_table);
    end if;
    execute format(v_sum, v_table) into v_rows_before, v_hash_before;
    if v_step.kind = 'reference' then
      -- Created again, the functions of the triggers go to every node.
      for v_definition in
        select pg_get_functiondef(f.tgfoid)
        from (select distinct g.tgfoid from pg_trigger g where g.tgrelid = v_table and not g.tgisinternal) f
      loop
        execute v_definition;
      end loop;
      -- While the rows are copied, triggers take them for new ones.
      v_triggers := array(
        select pg_get_triggerdef(g.oid) from pg_trigger g where g.tgrelid = v_table and not g.tgisinternal order by g.tgname
      );
      for v_trigger in
        select g.tgname from pg_trigger g where g.tgrelid = v_table and not g.tgisinternal
      loop
        execute format('drop trigger %I on %s', v_trigger, v_table);
      end loop;
      execute format('select create_reference_table(%L)', v_table);
      foreach v_trigger in array v_triggers loop
        execute v_trigger;
      end loop;
    else
      -- Ingest does in its own statements what these did.
      drop trigger if exists device_heartbeats_record_last_status on fleet.device_heartbeats;
      drop trigger if exists device_last_status_add_last_status on fleet.device_last_status;
      delete from fleet.recorded_triggers r
      where r.trigger_name in ('device_heartbeats_record_last_status', 'device_last_status_add_last_status');
      if p_step = 'device_last_status' then
        execute format(
          'select create_distributed_table(%L, ''device_id'', colocate_with => ''none'', shard_count => %s)', v_table, p_shards
        );
      else
        execute format(
          'select create_distributed_table(%L, ''device_id'', colocate_with => ''fleet.device_last_status'')', v_table
        );
      end if;
    end if;
    execute format(v_sum, v_table) into v_rows, v_hash;
    if (v_rows_before, v_hash_before) is distinct from (v_rows, v_hash) then
      raise exception using
        errcode = 'FL010',
        message = format('%s has other rows after it was distributed; it stays as it was', v_table),
        detail = format('rows %s, then %s; hash %s, then %s', v_rows_before, v_rows, v_hash_before, v_hash),
        hint = 'Report this. Nothing of this step was kept.';
    end if;
    return format('%s rows, hash %s, the same before and after', v_rows, coalesce(v_hash, 0));
  end if;

  if v_step.kind = 'functions' then
    -- Created again, they go to every node. What takes a row of a table of the coordinator stays there, which Citus says as a warning.
    perform set_config('client_min_messages', 'error', true);
    for v_definition in
      select pg_get_functiondef(p.oid)
      from pg_proc p
      where p.pronamespace = 'fleet'::regnamespace and p.prokind in ('f', 'p')
      order by p.oid
    loop
      execute v_definition;
      v_count := v_count + 1;
    end loop;
    return format('%s functions', v_count);
  end if;

  perform set_config('citus.multi_shard_modify_mode', 'sequential', true);
  -- Citus leaves the rows of before in the tables of the coordinator, where nothing reads them.
  for v_table in
    execute format($query$
      select c.oid::regclass
      from pg_catalog.%I d
      join pg_catalog.pg_class c on c.oid = d.logicalrelid
      where c.relnamespace = 'fleet'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and (d.partmethod = 'h' or d.repmodel = 't')
      order by c.relname
    $query$, 'pg_dist_partition')
  loop
    if v_table = 'fleet.device_heartbeats'::regclass then
      execute format('grant truncate on %s to fleet_owner', v_table);
    end if;
    execute format('select truncate_local_data_after_distributing_table(%L)', v_table);
    if v_table = 'fleet.device_heartbeats'::regclass then
      execute format('revoke truncate on %s from fleet_owner', v_table);
    end if;
    v_count := v_count + 1;
  end loop;
  return format('%s tables', v_count);
end
$$;

comment on function fleet.distribute_step(text, integer) is
  'Does one step of fleet.distribution_plan(), compares the rows of a table before and after, and says what it did. Called by '
  'fleet.distribute() and npm run distribute. Example: select fleet.distribute_step(''close'');';
