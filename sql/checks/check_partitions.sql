create or replace function fleet.check_partitions(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_today date := p_now::date;
  v_ahead integer;
  v_names text;
  v_commands text;
  v_attach text;
  v_late text;
  v_since timestamptz;
  v_count bigint;
  v_catalog text := left(fleet_guard.seal(0), -1);  -- read once, not for each row
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  -- A table that was detached by hand is attached again with its rows. A new partition would be empty.
  select e'-- as fleet_owner\n' || string_agg(
    format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L);',
      c.oid::regclass, p.range_start, p.range_end
    ),
    e'\n' order by p.range_start
  )
  into v_attach
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where p.state in ('active', 'restored') and not exists (select from pg_inherits i where i.inhrelid = c.oid);

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= p_now and a.range_end > p_now) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('there is no partition for %s, so heartbeats are quarantined', v_today);
    remedy := coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today, v_today + v_settings.premake_days));
  end if;
  return next;

  check_name := 'partitions_ahead';
  select coalesce(min(d.day) - v_today - 1, 90) into v_ahead
  from (select v_today + n as day from generate_series(1, 90) as n) d
  where not exists (select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day);
  detail := format('partitions exist for the next %s days; the setting is %s', v_ahead, v_settings.premake_days);
  -- Between midnight and the hourly run there is one partition less.
  status := case when v_ahead >= greatest(v_settings.premake_days - 1, 1) then 'ok' when v_ahead >= 3 then 'warn' else 'fail' end;
  remedy := case
    when status <> 'ok' then
      coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today + 1, v_today + v_settings.premake_days))
  end;
  return next;

  check_name := 'partition_obstacles';
  select string_agg(c.relname, ', ' order by c.relname),
    string_agg(format('alter table fleet.%I rename to %I;', c.relname, left('stray_' || c.relname, 63)), e'\n' order by c.relname)
  into v_names, v_commands
  from pg_class c
  where c.relnamespace = 'fleet'::regnamespace
    and c.relkind not in ('i', 'I')
    and c.relname like 'device\_heartbeats\_p%'
    and not exists (select from pg_inherits i where i.inhrelid = c.oid)
    and c.oid <> all (array(select coalesce(fleet.table_of(p), 0) from fleet.hb_partitions p));
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('in the way of a partition of the same name: ' || v_names, 'nothing is in the way of a new partition');
  remedy := format(e'-- as superuser\n%s\ncall fleet.maintain();', v_commands);
  remedy := case when v_names is not null then remedy end;
  return next;

  check_name := 'partition_catalog';
  select string_agg(format('%s is %s', k.partition_name, k.fault), ', ' order by k.partition_name) into v_names
  from (
    select a.partition_name, 'attached but unknown to fleet.hb_partitions' as fault
    from fleet.attached_partitions() a
    where not exists (
      select from fleet.hb_partitions p
      where fleet.table_of(p) = a.relid and p.state in ('active', 'restored')
        and p.range_start = a.range_start and p.range_end = a.range_end
    )
    union all
    select p.partition_name, format('%s in fleet.hb_partitions but not attached', p.state)
    from fleet.hb_partitions p
    join pg_class c on c.oid = fleet.table_of(p)
    where p.state in ('active', 'restored')
      and not exists (select from fleet.attached_partitions() a where a.relid = c.oid)
  ) k;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'fleet.hb_partitions agrees with the catalog');
  remedy := case when v_names is not null then coalesce(v_attach, 'select fleet.sync_partitions();') end;
  return next;

  check_name := 'partition_gaps';
  select string_agg(format('%s to %s', g.gap_start::date, g.gap_end::date), ', ' order by g.gap_start),
    string_agg(
      format('select fleet.create_partitions(%L, %L);', g.gap_start::date, g.gap_end::date - 1), e'\n' order by g.gap_start
    )
  into v_names, v_commands
  from (
    select a.range_end as gap_start, lead(a.range_start) over (order by a.range_start) as gap_end
    from fleet.attached_partitions() a
  ) g
  where g.gap_end > g.gap_start
    -- The days between a held or restored day and the rest are in the archive.
    and g.gap_end > p_now - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'there is no gap between partitions');
  remedy := v_commands;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start),
    string_agg(
      case
        when p.relid_seal is distinct from v_catalog || p.relid then 'call fleet.maintain();'  -- also finds a renamed table
        when p.state in ('active', 'restored') then
          format('select fleet.create_partitions(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date)
        when p.state = 'archived' then format('select fleet.drop_partition(%L);', p.partition_name)
        else format('-- %s: only a backup of Postgres has its rows', p.partition_name)
      end,
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  left join pg_class c on c.oid = fleet.table_of(p)
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone without a proper drop: ' || v_names, 'every partition that is not dropped has its table');
  remedy := e'-- creates the days again, empty; for their heartbeats see RUNBOOK.md, "A table is gone"\n' || v_commands;
  return next;

  check_name := 'partition_oids';
  select count(*) into v_count
  from fleet.hb_partitions p
  where p.relid is not null and (p.relid_seal is distinct from v_catalog || p.relid or p.relid <> fleet.table_of(p));
  select v_count + count(*) into v_count
  from fleet.imports a
  where a.relid_seal is distinct from v_catalog || a.relid;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case v_count
    when 0 then 'every table is recorded with its oid in this cluster'
    else format(
      '%s tables are recorded with oids of another cluster, from a restored dump; until it is fixed, they are found by name',
      v_count
    )
  end;
  remedy := case when v_count > 0 then 'call fleet.maintain();' end;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start),
    string_agg(format('alter table %s rename to %I;', c.oid::regclass, p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  join pg_class c on c.oid = fleet.table_of(p)
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has its original name');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, 0) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it has a row', 'there is none');
  remedy := case
    when v_names is not null then format(e'-- as fleet_owner\nalter table fleet.device_heartbeats detach partition %s;', v_names)
  end;
  return next;

  check_name := 'partition_indexes';
  with fault as (
    select a.partition_name, a.range_start,
      not coalesce(bool_or(i.indisunique and i.indisvalid), false) and not fleet.is_settled(a.relid)
        and not exists (  -- settled_days has those
          select from fleet.hb_partitions p where p.partition_name = a.partition_name and p.settled_at is not null
        ) as lacks_key,
      fleet.newest_index(a.relid) is null as lacks_newest,
      string_agg(format('drop index concurrently %s;', i.indexrelid::regclass), e'\n')
        filter (where not i.indisvalid) as leftovers
    from fleet.attached_partitions() a
    left join pg_index i on i.indrelid = a.relid
    group by a.partition_name, a.range_start, a.relid
  )
  select string_agg(f.partition_name, ', ' order by f.range_start),
    string_agg(
      concat_ws(
        e'\n',
        f.leftovers,
        -- Duplicates that were stored without the key prevent creating it.
        case when f.lacks_key then format(
          e'%s\ncreate unique index concurrently on fleet.%I %s;',
          fleet.remove_duplicates(f.partition_name), f.partition_name, fleet.dedupe_key()
        ) end,
        case when f.lacks_newest then format(
          e'create index if not exists device_heartbeats_device_id_ts_idx on only fleet.device_heartbeats (device_id, ts desc);'
          '\ncreate index concurrently if not exists %2$I on fleet.%1$I (device_id, ts desc);'
          '\nalter index fleet.device_heartbeats_device_id_ts_idx attach partition fleet.%2$I;',
          f.partition_name, f.partition_name || '_device_id_ts_idx'
        ) end
      ),
      e'\n' order by f.range_start
    )
  into v_names, v_commands
  from fault f
  where f.lacks_key or f.lacks_newest;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('an index is missing on ' || v_names, 'every partition has its indexes');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan(null, p_now) r
  where r.action = 'retire' and r.range_end < p_now - v_settings.retention - interval '2 days'
    -- It was held or restored until then, and the next night retires it.
    and not exists (
      select 1 from fleet.events e
      where e.partition_name = r.partition_name and e.event = 'partition.release' and e.at > p_now - interval '2 days'
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'no partition is overdue to be retired');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'settled_days';
  select
    string_agg(d.partition_name, ', ' order by d.range_start) filter (where not d.is_open),
    string_agg(d.partition_name, ', ' order by d.range_start) filter (where d.is_open),
    string_agg(
      format(e'%s\nselect fleet.unsettle_partition(%L);', fleet.remove_duplicates(d.partition_name), d.partition_name),
      e'\n' order by d.range_start
    ) filter (where d.is_open)
  into v_names, v_late, v_commands
  from (
    select p.partition_name, p.range_start, p.settled_at is not null and fleet.dedupe_index(t.relid) is null as is_open
    from fleet.hb_partitions p
    cross join lateral fleet.table_of(p) as t (relid)
    where p.state in ('active', 'restored') and t.relid is not null
      and (p.settled_at is not null) <> fleet.is_settled(t.relid)
  ) d;
  if v_late is not null then
    status := 'fail';
    detail := format(
      'somebody dropped the constraint of a settled day, so it takes rows and does not recognize duplicates: %s', v_late
    );
    remedy := e'-- as superuser\n' || v_commands;
  elsif v_names is not null then
    status := 'warn';
    detail := 'fleet.hb_partitions and the catalog disagree about what is settled: ' || v_names;
    remedy := 'select fleet.sync_partitions();';
  else
    -- After an upgrade the first night has not been yet.
    select min(e.at) into v_since from fleet.events e where e.event = 'maintenance.settle';
    with late as (
      select s.*
      from fleet.settle_plan(p_now) s
      where s.action = 'unsettle'
        or s.action = 'too_large' and p_now - s.due_at > interval '3 days'
        or s.action = 'settle' and v_since is not null and p_now - greatest(s.due_at, v_since) > interval '3 days'
    )
    select
      string_agg(format('%s (%s)', l.partition_name, l.reason), ', ' order by l.range_start desc)
        filter (where l.action = 'unsettle'),
      string_agg(format('%s (%s)', l.partition_name, l.reason), ', ' order by l.range_start desc)
        filter (where l.action <> 'unsettle'),
      concat_ws(
        e'\n',
        case when bool_or(l.action = 'unsettle') then 'call fleet.maintain();' end,
        case when bool_or(l.action = 'too_large') then format(
          'update fleet.settings set settle_max_wait = ''%s seconds'';', ceil(extract(epoch from max(l.estimate)) * 1.5)
        ) end,
        case when bool_or(l.action <> 'unsettle') then 'call fleet.nightly();' end
      )
    into v_names, v_late, v_commands
    from late l;
    status := case when v_names is null and v_late is null then 'ok' else 'warn' end;
    detail := concat_ws(
      '; ', 'settled, but heartbeats are accepted again: ' || v_names, 'for more than three days not settled: ' || v_late
    );
    detail := coalesce(nullif(detail, ''), 'past days are settled, or will be soon');
    remedy := nullif(v_commands, '');
  end if;
  return next;

  check_name := 'rollups';
  select string_agg(format('%s since %s', r.day, r.due_at), ', ' order by r.day),
    string_agg(distinct case r.action when 'roll_up' then 'call fleet.nightly();' else 'call fleet.maintain();' end, e'\n')
  into v_names, v_commands
  from fleet.rollup_plan(p_now) r
  where r.state in ('active', 'restored')
    and r.due_at < p_now - case r.action when 'roll_up' then interval '2 days' else interval '3 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('availability is not rolled up: ' || v_names, 'past days are rolled up, late heartbeats included');
  remedy := v_commands;
  return next;

  check_name := 'guard';
  status := 'ok'; detail := 'a partition without a proven archive cannot be dropped'; remedy := null;
  select string_agg(g.name, ', ' order by g.name),
    case
      when bool_or(e.evtname is null) then e'# in a shell, with DATABASE_URL of a superuser\nnpm run migrate'
      else e'-- as superuser\n' || string_agg(format('alter event trigger %I enable always;', g.name), e'\n' order by g.name)
    end
  into v_names, v_commands
  -- A test compares these and fleet_guard_columns, which check_columns() looks at, with what setup creates.
  from (values ('fleet_guard_drop'), ('fleet_guard_find')) as g (name)
  left join pg_event_trigger e on e.evtname = g.name
  where e.evtenabled is distinct from 'A';
  if v_names is not null then
    status := 'warn'; detail := 'event triggers that are missing or not ENABLE ALWAYS: ' || v_names; remedy := v_commands;
  end if;
  return next;
end
$$;

comment on function fleet.check_partitions(timestamptz) is
  'The part of fleet.check() about partitions: today''s, those ahead, gaps, names, indexes, retention, settled days, '
  'rollups and the guard.';
