create or replace function fleet.check_storage(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_dead bigint;
  v_live bigint;
  v_age bigint;
  v_limit bigint := current_setting('autovacuum_freeze_max_age')::bigint;
  v_last bigint;
  v_usual bigint;
  v_wal bigint;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;

  check_name := 'autovacuum';
  select string_agg(c.relname, ', '), string_agg(format('alter table fleet.%I reset (autovacuum_enabled);', c.relname), e'\n')
  into v_names, v_commands
  from pg_class c
  where c.reloptions
      && array['autovacuum_enabled=false', 'autovacuum_enabled=off', 'autovacuum_enabled=0', 'autovacuum_enabled=no']
    and (
      c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and not c.relispartition
      or c.oid in (select a.relid from fleet.attached_partitions() a where a.range_end > p_now)
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('switched off for ' || v_names, 'it is on for every table whose rows change');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'dead_rows';
  v_dead := pg_stat_get_dead_tuples('fleet.device_last_status'::regclass);
  v_live := pg_stat_get_live_tuples('fleet.device_last_status'::regclass);
  status := case when v_dead > 5000 + v_live then 'warn' else 'ok' end;
  detail := format('device_last_status has %s dead and %s live rows', v_dead, v_live);
  remedy := case when status <> 'ok' then e'-- as fleet_owner\nvacuum (analyze) fleet.device_last_status;' end;
  return next;

  check_name := 'partitions_vacuumed';
  -- Uses the visibility map, because a crash loses the statistics of vacuums. Small partitions do not matter.
  select string_agg(a.partition_name, ', ' order by a.range_start),
    string_agg(format('vacuum (analyze) fleet.%I;', a.partition_name), e'\n' order by a.range_start)
  into v_names, v_commands
  from fleet.attached_partitions() a
  join pg_class c on c.oid = a.relid
  where a.range_end between p_now - interval '7 days' and p_now - interval '1 day'
    -- CASE, so that no other table is opened: one that is being settled is locked.
    and case when a.range_end > p_now - interval '7 days' then
      pg_relation_size(a.relid) > 1 << 20
      and c.relallvisible * current_setting('block_size')::bigint < pg_relation_size(a.relid) / 2
    end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('not vacuumed since their day ended: ' || v_names, 'the last days are vacuumed and analyzed');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'wraparound';
  select age(d.datfrozenxid) into v_age from pg_database d where d.datname = current_database();
  status := case when v_age > 1500000000 then 'fail' when v_age > v_limit * 1.5 then 'warn' else 'ok' end;
  detail := format(
    'the oldest row is %s transactions old; autovacuum freezes at %s, and Postgres stops at 2 billion', v_age, v_limit
  );
  if status <> 'ok' then
    select string_agg(format('vacuum (freeze) %s;', o.relid), e'\n' order by o.age desc) into v_commands
    from (
      select c.oid::regclass as relid, age(c.relfrozenxid) as age
      from pg_class c
      where c.relkind in ('r', 'm', 't') and age(c.relfrozenxid) > v_limit
      order by 2 desc
      limit 50
    ) o;
  end if;
  remedy := case when status <> 'ok' then e'-- as superuser; the oldest 50 tables. Repeat until this is ok\n' || v_commands end;
  return next;

  check_name := 'disk';
  select avg(g.bytes_online) filter (where g.day between p_now::date - 8 and p_now::date - 2),
    max(g.bytes_online) filter (where g.day = p_now::date - 1)
  into v_usual, v_last
  from fleet.storage_growth g;
  begin
    select sum(w.size) into v_wal from pg_ls_waldir() w;
  exception when insufficient_privilege then
    v_wal := null;
  end;
  -- Postgres cannot ask how much space is free on a disk.
  status := case when v_last > 1 << 30 and v_last > 2 * v_usual then 'warn' else 'ok' end;
  detail := format(
    'the database takes %s and WAL %s; yesterday''s heartbeats take %s, an average day of the week before takes %s, and a whole '
    'retention would take %s; Postgres does not know the free space',
    pg_size_pretty(pg_database_size(current_database())),
    coalesce(pg_size_pretty(v_wal), '?'),
    pg_size_pretty(coalesce(v_last, 0)), pg_size_pretty(coalesce(v_usual, 0)),
    pg_size_pretty((coalesce(greatest(v_last, v_usual), 0) * extract(epoch from v_settings.retention) / 86400)::bigint)
  );
  remedy := case
    when status <> 'ok' then format(
      e'# in a shell: is there room for the retention? If not, add disk or shorten it: select fleet.set_retention(…);\n'
        'df -h ''%s''',
      v_directory
    )
  end;
  return next;
end
$$;

comment on function fleet.check_storage(timestamptz) is
  'The part of fleet.check() about tables on disk: autovacuum, dead rows, wraparound, size and growth.';
