-- One question to each node, one after the other, so that its clock is compared with the times just before and after.
create or replace function fleet.check_nodes(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set client_min_messages = error
set citus.node_connection_timeout = '3s'
as $$
#variable_conflict use_column
declare
  c_clocks_differ constant interval := interval '1 second';
  c_prepared_for constant interval := interval '10 minutes';
  v_away text := fleet.nodes_away();
  v_question text;
  v_node record;
  v_answer jsonb;
  v_error text;
  v_before timestamptz;
  v_after timestamptz;
  v_clock timestamptz;
  v_here jsonb;
  v_expected jsonb;
  v_clocks text;
  v_versions text;
  v_forms text;
  v_prepared text;
  v_unasked text := v_away;
  v_most integer;
  v_fewest integer;
  v_is_misplaced boolean;
  v_names text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'nodes';
  status := case when v_away is null then 'ok' else 'fail' end;
  detail := case
    when v_away is null then format(
      'all %s workers answer', (select count(*) from pg_catalog.pg_dist_node n where n.groupid <> 0 and n.noderole = 'primary')
    )
    else format('no answer from %s: its devices are refused with 503, and keep their heartbeats', v_away)
  end;
  remedy := case
    when v_away is not null then
      '-- start Postgres there, or look at its network: RUNBOOK.md, "A worker is lost". This shows who reaches whom'
      || e'\nselect * from citus_check_cluster_node_health();'
  end;
  return next;

  -- What npm run migrate installed last, and what is here now.
  select jsonb_object_agg(r.object, r.form) filter (
      where exists (
        select
        from pg_catalog.pg_dist_object o
        where case
          when r.object like '%)' then o.classid = 'pg_catalog.pg_proc'::regclass and o.objid = to_regprocedure(r.object)
          else o.classid = 'pg_catalog.pg_class'::regclass and o.objid = to_regclass(r.object)
        end
      )
    ),
    string_agg(r.object, ', ' order by r.object) filter (where fleet.form_of(r.object) is distinct from r.form)
  into v_expected, v_forms
  from fleet.recorded_forms r;
  v_forms := 'coordinator: ' || v_forms;
  v_question := format(
    $question$
      select pg_catalog.jsonb_build_object(
        'clock', pg_catalog.clock_timestamp(),
        'versions', pg_catalog.format(
          'PostgreSQL %%s, Citus %%s', pg_catalog.current_setting('server_version'),
          (select x.extversion from pg_catalog.pg_extension x where x.extname = 'citus')
        ),
        'forms', (
          select pg_catalog.jsonb_object_agg(f.object, fleet.form_of(f.object))
          from pg_catalog.jsonb_object_keys(%L::pg_catalog.jsonb) as f (object)
        ),
        'prepared', (
          select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('gid', x.gid, 'at', x.prepared) order by x.prepared)
          from pg_catalog.pg_prepared_xacts x
          where x.gid like 'citus\_%%' and x.database = pg_catalog.current_database()
        )
      )
    $question$,
    coalesce(v_expected, '{}')
  );
  execute v_question into v_here;
  for v_node in
    select n.nodename, n.nodeport, n.groupid, format('%s:%s', n.nodename, n.nodeport) as name
    from pg_catalog.pg_dist_node n
    where n.noderole = 'primary' and strpos(', ' || coalesce(v_away, '') || ',', format(', %s:%s,', n.nodename, n.nodeport)) = 0
    order by n.groupid
  loop
    v_answer := v_here;
    if v_node.groupid <> 0 then
      v_before := clock_timestamp();
      select case when w.success then w.result::jsonb end, w.result
      into v_answer, v_error
      from pg_catalog.master_run_on_worker(array[v_node.nodename], array[v_node.nodeport], array[v_question], false) w;
      v_after := clock_timestamp();
      if v_answer is null then
        v_unasked := concat_ws(', ', v_unasked, format('%s (%s)', v_node.name, v_error));
        continue;
      end if;
      v_clock := (v_answer ->> 'clock')::timestamptz;
      if v_clock > v_after + c_clocks_differ or v_clock < v_before - c_clocks_differ then
        v_clocks := concat_ws(', ', v_clocks, format(
          '%s is %s s %s', v_node.name,
          round(extract(epoch from greatest(v_clock - v_after, v_before - v_clock)), 1),
          case when v_clock > v_after then 'ahead' else 'behind' end
        ));
      end if;
      if v_answer ->> 'versions' is distinct from v_here ->> 'versions' then
        v_versions := concat_ws(', ', v_versions, format('%s has %s', v_node.name, v_answer ->> 'versions'));
      end if;
      select string_agg(e.key, ', ' order by e.key) into v_names
      from jsonb_each_text(v_expected) e
      where v_answer -> 'forms' ->> e.key is distinct from e.value;
      v_forms := nullif(concat_ws('; ', v_forms, v_node.name || ': ' || v_names), '');
    end if;
    v_prepared := nullif(concat_ws('; ', v_prepared, (
      select format('%s: %s', v_node.name, string_agg(format('%s since %s', x.gid, date_trunc('second', x.at)), ', '))
      from jsonb_to_recordset(coalesce(nullif(v_answer -> 'prepared', 'null'), '[]')) as x (gid text, at timestamptz)
      where x.at < p_now - c_prepared_for
      having count(*) > 0
    )), '');
  end loop;

  check_name := 'node_clocks';
  status := case when v_clocks is null then 'ok' else 'warn' end;
  detail := coalesce('the clocks of the nodes differ: ' || v_clocks, 'the clocks of the nodes differ by less than a second')
    || coalesce('; not asked: ' || v_unasked, '');
  remedy := case
    when v_clocks is not null then
      e'-- start the time service of that machine (chrony, systemd-timesyncd). This shows the clock of each node'
      '\nselect nodename, nodeport, result from run_command_on_all_nodes(''select clock_timestamp()'') '
      'join pg_dist_node using (nodeid) order by nodeid;'
  end;
  return next;

  check_name := 'node_versions';
  status := case when v_versions is not null or v_forms is not null then 'fail' else 'ok' end;
  detail := coalesce(
    nullif(
      concat_ws(
        '; ', format('this node has %s, but ', v_here ->> 'versions') || v_versions,
        'not what npm run migrate installed in a distributed store: ' || v_forms
      ), ''
    ),
    format('every node has %s and the same functions', v_here ->> 'versions')
  ) || coalesce('; not asked: ' || v_unasked, '');
  remedy := case
    when v_forms is not null then e'# in a shell, with DATABASE_URL of a superuser\nnpm run migrate'
    when v_versions is not null then
      e'-- install the same versions on each node: RUNBOOK.md, "Upgrade Citus or PostgreSQL". This shows them'
      '\nselect * from run_command_on_all_nodes(''select version() || citus_version()'');'
  end;
  return next;

  check_name := 'node_transactions';
  status := case when v_prepared is null then 'ok' else 'fail' end;
  detail := coalesce('half done, with their locks: ' || v_prepared, 'no transaction over several nodes is half done for long')
    || coalesce('; not asked: ' || v_unasked, '');
  remedy := case
    when v_prepared is not null then
      e'-- as superuser; each node ends those that it began, as it decided then. Citus does so each minute, if the nodes are up'
      '\nselect * from run_command_on_all_nodes(''select recover_prepared_transactions()'');'
  end;
  return next;

  check_name := 'shards';
  select max(s.shards) filter (where s.shouldhaveshards), min(s.shards) filter (where s.shouldhaveshards),
    string_agg(format('%s has %s', s.name, s.shards), ', ' order by s.nodeid) filter (where s.shouldhaveshards or s.shards > 0),
    bool_or(not s.shouldhaveshards and s.shards > 0)
  into v_most, v_fewest, v_names, v_is_misplaced
  from (
    select n.nodeid, format('%s:%s', n.nodename, n.nodeport) as name, n.shouldhaveshards,
      (
        select count(*)
        from pg_catalog.pg_dist_placement p
        join pg_catalog.pg_dist_shard h on h.shardid = p.shardid
        where p.groupid = n.groupid and h.logicalrelid = 'fleet.device_last_status'::regclass
      ) as shards
    from pg_catalog.pg_dist_node n
    where n.noderole = 'primary'
  ) s;
  status := case when v_most - v_fewest > 1 or v_is_misplaced then 'warn' else 'ok' end;
  detail := format('shards of the devices: %s', v_names);
  remedy := case
    when status <> 'ok' then e'# in a shell, with DATABASE_URL of a superuser; heartbeats come in meanwhile\nnpm run distribute -- --rebalance'
  end;
  return next;
end
$$;

comment on function fleet.check_nodes(timestamptz) is
  'The form of fleet.check_nodes() for a distributed store: nodes that do not answer, clocks and versions that differ, functions that '
  'are not those of a distributed store, transactions that are half done, and shards out of balance.';
