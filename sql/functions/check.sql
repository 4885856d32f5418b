create or replace function fleet.check()
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
  v_settings fleet.settings;
  v_today timestamptz := date_trunc('day', now());
  v_ahead integer;
  v_names text;
  v_count bigint;
  v_age interval;
begin
  select * into strict v_settings from fleet.settings;

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= now() and a.range_end > now()) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('no partition for %s: heartbeats are quarantined', v_today::date);
    remedy := 'call fleet.maintain();';
  end if;
  return next;

  check_name := 'partitions_ahead';
  select count(*) into v_ahead
  from generate_series(v_today + interval '1 day', v_today + interval '90 days', interval '1 day') as d (day)
  where d.day < coalesce(
    (
      select min(g.day)
      from generate_series(v_today + interval '1 day', v_today + interval '91 days', interval '1 day') as g (day)
      where not exists (select from fleet.attached_partitions() a where a.range_start <= g.day and a.range_end > g.day)
    ),
    'infinity'
  );
  detail := format('%s days ahead, %s wanted', v_ahead, v_settings.premake_days);
  status := case when v_ahead >= v_settings.premake_days then 'ok' when v_ahead >= 3 then 'warn' else 'fail' end;
  remedy := case when status <> 'ok' then 'call fleet.maintain();' end;
  return next;

  check_name := 'partition_gaps';
  select string_agg(g.gap, ', ') into v_names
  from (
    select format('%s to %s', a.range_end, lead(a.range_start) over (order by a.range_start)) as gap,
      a.range_end as gap_start,
      lead(a.range_start) over (order by a.range_start) as gap_end
    from fleet.attached_partitions() a
  ) g
  where g.gap_end > g.gap_start
    -- Between a held or restored day and the rest, the days are in the archive.
    and g.gap_end > now() - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'no gap between partitions');
  remedy := case when v_names is not null then 'select fleet.create_partitions(from, to);' end;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  left join pg_class c on c.oid = p.relid
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone, undropped: ' || v_names, 'every partition that is not dropped has its table');
  remedy := case when v_names is not null then 'Restore from a backup; see RUNBOOK.md, "A table is gone".' end;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has the name it was made with');
  remedy := case when v_names is not null then 'alter table … rename to its former name;' end;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it holds a row', 'there is none');
  remedy := case when v_names is not null then format('alter table fleet.device_heartbeats detach partition %s;', v_names) end;
  return next;

  check_name := 'partition_indexes';
  select string_agg(a.partition_name, ', ') into v_names
  from fleet.attached_partitions() a
  where (
    select count(*) from pg_index i where i.indrelid = a.relid and i.indisvalid and (i.indisunique or i.indnatts = 2)
  ) < 2 or not exists (
    select from pg_index i where i.indrelid = a.relid and i.indisvalid and i.indisunique
  );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('an index is missing on ' || v_names, 'every partition has both indexes');
  remedy := case
    when v_names is not null then
      'select partman.inherit_template_properties(''fleet.device_heartbeats'', ''fleet'', name); for each of them'
  end;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan() r
  where r.action = 'retire' and r.range_end < now() - v_settings.retention - interval '2 days';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'nothing overdue');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'archive_failed';
  select string_agg(format('%s: %s', p.partition_name, p.last_error), '; ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  where p.state = 'archive_failed';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'none');
  remedy := case when v_names is not null then 'Mend the cause, then select fleet.retry_archive(name);' end;
  return next;

  check_name := 'archive_backlog';
  select count(*), now() - min(p.detached_at) into v_count, v_age
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving');
  status := case when v_count = 0 or v_age < interval '6 hours' then 'ok' when v_age < interval '2 days' then 'warn' else 'fail' end;
  detail := format('%s partitions wait%s', v_count, ', the oldest for ' || date_trunc('second', v_age));
  remedy := case when status <> 'ok' then 'Is the archiver running? Then: select fleet.wake_archiver();' end;
  return next;

  check_name := 'archiver';
  select now() - max(a.last_seen_at) into v_age from fleet.archivers a;
  status := case when v_age < interval '5 minutes' then 'ok' when v_age is null then 'warn' else 'fail' end;
  detail := coalesce('last heard of ' || date_trunc('second', v_age) || ' ago', 'never heard of');
  remedy := case when status <> 'ok' then 'Start it: npm run archiver' end;
  return next;

  check_name := 'restores';
  select string_agg(format('%s: %s', i.partition_name, i.last_error), '; ') into v_names
  from fleet.restore_items i
  where i.state = 'failed' and i.finished_at > now() - interval '1 day';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('failed: ' || v_names, 'none failed in the last day');
  remedy := case when v_names is not null then 'npm run archive -- verify, then select fleet.request_restore(from, to);' end;
  return next;

  check_name := 'maintenance';
  select string_agg(format('%s %s: %s', e.event, e.partition_name, e.detail), '; ') into v_names
  from fleet.events e
  where e.event like 'maintenance.%' and not e.is_ok and e.at > now() - interval '25 hours'
    and not exists (
      select from fleet.events l
      where l.event = e.event and l.partition_name is not distinct from e.partition_name and l.is_ok and l.at > e.at
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'no step failed without a later success');
  remedy := case when v_names is not null then 'Mend the cause, then call fleet.nightly();' end;
  return next;

  check_name := 'scheduler';
  if not exists (select from pg_extension where extname = 'pg_cron') then
    status := 'warn'; detail := 'pg_cron is not in this database; what it runs elsewhere is not seen from here';
    remedy := 'select * from fleet.schedule_jobs(); tells what to run in its database';
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs'; remedy := 'Restart Postgres.';
  else
    select string_agg(format('%s is %s', j.jobname, j.status), ', ') into v_names
    from fleet.job_health j
    where j.status not in ('ok', 'waiting');
    status := case when v_names is null then 'ok' else 'fail' end;
    detail := coalesce(v_names, 'all jobs run');
    remedy := case when v_names is not null then 'select * from fleet.job_health; missing ones: select * from fleet.schedule_jobs();' end;
  end if;
  return next;

  check_name := 'quarantine';
  select count(*), count(distinct q.device_id)::text into v_count, v_names
  from fleet.heartbeat_quarantine q
  where q.received_at > now() - interval '1 hour';
  status := case when v_count < 100 then 'ok' else 'warn' end;
  detail := format('%s heartbeats of %s devices in the last hour', v_count, v_names);
  remedy := case
    when status <> 'ok' then
      'select reason, count(*), min(ts), max(ts) from fleet.heartbeat_quarantine where received_at > now() - interval ''1 hour'' group by reason;'
  end;
  return next;

  check_name := 'guard';
  if exists (select from pg_event_trigger where evtname = 'fleet_guard_drop' and evtenabled = 'A') then
    status := 'ok'; detail := 'DROP of an unproven partition is refused'; remedy := null;
  else
    status := 'warn'; detail := 'the event trigger fleet_guard_drop is missing or not ENABLE ALWAYS';
    remedy := 'As superuser: run sql/guard.sql, or alter event trigger fleet_guard_drop enable always;';
  end if;
  return next;
end
$$;

comment on function fleet.check() is
  'One row per thing that can go wrong: ok, warn or fail, with the remedy as a command. Example: select * from fleet.check() where status <> ''ok'';';
