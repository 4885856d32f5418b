--! Previous: sha1:2db77a0e48efb0356acdbc7e92aa3a21ba5ab051
--! Hash: sha1:b2dfcde5200ee6bc2fbde0e8e96bd6decb163efa
--! Message: Check: attach what was detached by hand, and answer without rights

--! Included functions/check_partitions.sql
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
begin
  select * into strict v_settings from fleet.settings;
  -- Detached by hand: made anew they would not be, attached they are as before.
  select e'-- as fleet_owner\n' || string_agg(
    format(
      'alter table fleet.device_heartbeats attach partition %s for values from (%L) to (%L);', p.relid::regclass, p.range_start, p.range_end
    ),
    e'\n' order by p.range_start
  )
  into v_attach
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where p.state in ('active', 'restored') and not exists (select from pg_inherits i where i.inhrelid = p.relid);

  check_name := 'partition_today';
  if exists (select from fleet.attached_partitions() a where a.range_start <= p_now and a.range_end > p_now) then
    status := 'ok'; detail := 'today has a partition'; remedy := null;
  else
    status := 'fail'; detail := format('no partition for %s: heartbeats are quarantined', v_today);
    remedy := coalesce(v_attach, format('select fleet.create_partitions(%L, %L);', v_today, v_today + v_settings.premake_days));
  end if;
  return next;

  check_name := 'partitions_ahead';
  select coalesce(min(d.day) - v_today - 1, 90) into v_ahead
  from (select v_today + n as day from generate_series(1, 90) as n) d
  where not exists (select from fleet.attached_partitions() a where a.range_start <= d.day and a.range_end > d.day);
  detail := format('%s days ahead, %s wanted', v_ahead, v_settings.premake_days);
  -- Between midnight and the hourly run there is one less.
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
    and not exists (select from fleet.hb_partitions p where p.relid = c.oid);
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('in the way of a partition of that name: ' || v_names, 'no name of a partition is taken');
  remedy := format(e'-- as superuser\n%s\ncall fleet.maintain();', v_commands);
  remedy := case when v_names is not null then remedy end;
  return next;

  check_name := 'partition_catalog';
  select string_agg(format('%s is %s', k.partition_name, k.fault), ', ' order by k.partition_name) into v_names
  from (
    select a.partition_name, 'attached, and not known to fleet.hb_partitions' as fault
    from fleet.attached_partitions() a
    where not exists (
      select from fleet.hb_partitions p
      where p.relid = a.relid and p.state in ('active', 'restored') and p.range_start = a.range_start and p.range_end = a.range_end
    )
    union all
    select p.partition_name, format('%s in fleet.hb_partitions, and not attached', p.state)
    from fleet.hb_partitions p
    join pg_class c on c.oid = p.relid
    where p.state in ('active', 'restored')
      and not exists (select from fleet.attached_partitions() a where a.relid = p.relid)
  ) k;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'fleet.hb_partitions says what the catalog says');
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
    -- Between a held or restored day and the rest, the days are in the archive.
    and g.gap_end > p_now - v_settings.retention
    and exists (
      select from generate_series(g.gap_start, g.gap_end - interval '1 day', interval '1 day') as d (day)
      where not exists (select from fleet.hb_partitions p where p.range_start <= d.day and p.range_end > d.day)
    );
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('no partition from ' || v_names, 'no gap between partitions');
  remedy := v_commands;
  return next;

  check_name := 'partition_tables';
  select string_agg(p.partition_name, ', ' order by p.range_start),
    string_agg(
      case
        when p.state in ('active', 'restored') then
          format('select fleet.create_partitions(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date)
        when p.state = 'archived' then format('select fleet.drop_partition(%L);', p.partition_name)
        else format('-- %s: its rows are in a backup of Postgres only', p.partition_name)
      end,
      e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  left join pg_class c on c.oid = p.relid
  where p.state <> 'dropped' and c.oid is null;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('the table is gone, undropped: ' || v_names, 'every partition that is not dropped has its table');
  remedy := e'-- makes the days anew, empty; what they held: RUNBOOK.md, "A table is gone"\n' || v_commands;
  return next;

  check_name := 'partition_names';
  select string_agg(format('%s is now named %s', p.partition_name, c.relname), ', ' order by p.range_start),
    string_agg(format('alter table %s rename to %I;', c.oid::regclass, p.partition_name), e'\n' order by p.range_start)
  into v_names, v_commands
  from fleet.hb_partitions p
  join pg_class c on c.oid = p.relid
  where c.relname <> p.partition_name;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'every partition has the name it was made with');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'default_partition';
  select string_agg(c.oid::regclass::text, ', ') into v_names
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'fleet.device_heartbeats'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names || ' would block premake and retention as soon as it holds a row', 'there is none');
  remedy := case
    when v_names is not null then format(e'-- as fleet_owner\nalter table fleet.device_heartbeats detach partition %s;', v_names)
  end;
  return next;

  check_name := 'partition_indexes';
  with fault as (
    select a.partition_name, a.range_start,
      not coalesce(bool_or(i.indisunique and i.indisvalid), false) as lacks_key,
      not coalesce(bool_or(i.indisvalid and not i.indisunique and pg_get_indexdef(i.indexrelid) like '%(device\_id, ts DESC)'), false)
        as lacks_newest,
      string_agg(format('drop index concurrently %s;', i.indexrelid::regclass), e'\n') filter (where not i.indisvalid) as leftovers
    from fleet.attached_partitions() a
    left join pg_index i on i.indrelid = a.relid
    group by a.partition_name, a.range_start
  )
  select string_agg(f.partition_name, ', ' order by f.range_start),
    string_agg(
      concat_ws(
        e'\n',
        f.leftovers,
        -- What the key would have kept out meanwhile stands in its way now.
        case when f.lacks_key then format(
          e'delete from fleet.%1$I a using fleet.%1$I b where a.device_id = b.device_id '
          'and date_bin(''10 seconds'', a.ts, ''2000-01-01Z'') = date_bin(''10 seconds'', b.ts, ''2000-01-01Z'') '
          'and (a.received_at, a.ctid) > (b.received_at, b.ctid);'
          '\ncreate unique index concurrently on fleet.%1$I %2$s;',
          f.partition_name,
          regexp_replace(pg_get_indexdef('fleet.device_heartbeats_template_dedupe_key'::regclass), '^.* USING btree ', '')
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
  detail := coalesce('an index is missing on ' || v_names, 'every partition has both indexes');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'retention';
  select string_agg(r.partition_name, ', ') into v_names
  from fleet.retention_plan(null, p_now) r
  where r.action = 'retire' and r.range_end < p_now - v_settings.retention - interval '2 days';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past the retention by more than two days: ' || v_names, 'nothing overdue');
  remedy := case when v_names is not null then 'call fleet.nightly();' end;
  return next;

  check_name := 'guard';
  status := 'ok'; detail := 'DROP of an unproven partition is refused'; remedy := null;
  if not exists (select from pg_event_trigger where evtname = 'fleet_guard_drop' and evtenabled = 'A') then
    status := 'warn'; detail := 'the event trigger fleet_guard_drop is missing or not ENABLE ALWAYS';
    remedy := concat_ws(
      e'\n', '-- as superuser',
      case
        when not exists (select from pg_event_trigger where evtname = 'fleet_guard_drop') then
          'create event trigger fleet_guard_drop on sql_drop execute function fleet_guard.refuse_unproven_drop();'
      end,
      'alter event trigger fleet_guard_drop enable always;'
    );
  end if;
  return next;
end
$$;

comment on function fleet.check_partitions(timestamptz) is
  'What fleet.check() says of partitions: today''s, those ahead, gaps, names, indexes, retention and the guard.';
--! EndIncluded functions/check_partitions.sql
--! Included functions/check_ingest.sql
create or replace function fleet.check_ingest(p_now timestamptz default now())
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
  c_sample constant integer := 100;
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_total bigint;
  v_start bigint;
begin
  select * into strict v_settings from fleet.settings;

  check_name := 'triggers';
  select string_agg(w.name, ', '),
    string_agg(
      case
        when g.oid is null then w.definition
        else format('alter table fleet.%I enable trigger %I;', w.relation, w.name)
      end,
      e'\n'
    )
    -- While it was off, last status was not kept.
    || case when bool_or(w.relation = 'device_heartbeats') then e'\nselect fleet.backfill_last_status(1);' else '' end
  into v_names, v_commands
  from (
    values
      ('device_heartbeats', 'device_heartbeats_record_last_status',
        'create trigger device_heartbeats_record_last_status after insert on fleet.device_heartbeats '
        'referencing new table as new_rows for each statement execute function fleet.record_last_status();'),
      ('hb_partitions', 'hb_partitions_protect',
        'create trigger hb_partitions_protect after insert or update on fleet.hb_partitions '
        'for each row execute function fleet.protect_partition();'),
      ('settings', 'settings_audit',
        'create trigger settings_audit after update on fleet.settings for each row execute function fleet.audit_settings();'),
      ('devices', 'devices_forget_marks',
        'create trigger devices_forget_marks after update of heartbeat_interval on fleet.devices '
        'for each statement execute function fleet.forget_marks();')
  ) as w (relation, name, definition)
  left join pg_trigger g on g.tgrelid = to_regclass('fleet.' || w.relation) and g.tgname = w.name
  where g.tgenabled is null or g.tgenabled not in ('O', 'A');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('disabled or missing: ' || v_names, 'all are on');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'last_status';
  select floor(random() * greatest(coalesce(max(d.device_id), 0) - c_sample, 0)) into v_start from fleet.devices d;
  -- One statement stores a heartbeat and moves last status, so that any difference is drift.
  select count(*) filter (where ls.last_ts is null or ls.last_ts < h.ts), count(*) into v_count, v_total
  from (
    select s.device_id
    from fleet.devices s
    where s.device_id > v_start
    order by s.device_id
    limit c_sample
  ) d
  left join fleet.device_last_status ls on ls.device_id = d.device_id
  cross join lateral (
    select b.ts
    from fleet.device_heartbeats b
    where b.device_id = d.device_id and b.ts >= p_now - interval '1 day' and b.ts < p_now + interval '1 day'
    order by b.ts desc
    limit 1
  ) h;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := format('%s of %s devices looked at are behind their newest heartbeat', v_count, v_total);
  remedy := case when v_count > 0 then 'select fleet.backfill_last_status(1);' end;
  return next;

  check_name := 'quarantine';
  select sum(r.n), string_agg(format('%s %s', r.n, r.reason), ', ' order by r.reason),
    string_agg(
      case r.reason
        when 'no_partition' then format('select fleet.create_partitions(%L, %L);', r.first::date, r.last::date)
        -- Beyond the retention nothing is stored.
        when 'too_late' then format(
          'update fleet.settings set max_late = %L;', least(make_interval(days => r.late_days), v_settings.retention)
        )
        else 'select device_id, max(ts - received_at) as ahead from fleet.heartbeat_quarantine '
          'where reason = ''in_future'' group by device_id order by ahead desc limit 50;'
      end,
      e'\n' order by r.reason
    )
  into v_count, v_names, v_commands
  from (
    select q.reason, count(*) as n, min(q.ts) as first, max(q.ts) as last,
      least(ceil(max(extract(epoch from q.received_at - q.ts)) / 86400), 3650)::integer as late_days
    from fleet.heartbeat_quarantine q
    where q.received_at > p_now - interval '1 hour'
    group by q.reason
  ) r;
  status := case when coalesce(v_count, 0) < 100 then 'ok' else 'warn' end;
  detail := format('%s heartbeats in the last hour', coalesce(v_names, 'no'));
  remedy := case
    when status <> 'ok' then concat_ws(
      e'\n', '-- takes them in from now on, and what was kept aside', v_commands, 'select * from fleet.replay_quarantine();'
    )
  end;
  return next;

  check_name := 'quarantine_full';
  select count(*), string_agg(f.device_id::text, ', ' order by f.device_id) filter (where f.nth <= 10) into v_count, v_names
  from (
    select d.device_id, row_number() over (order by d.device_id) as nth
    from (
      (select ls.device_id from fleet.device_last_status ls where ls.status = 'clock_skewed' limit 1000)
      union
      select q.device_id from fleet.heartbeat_quarantine q where q.received_at > p_now - interval '1 hour'
    ) d
    where (
      select count(*)
      from (
        select from fleet.heartbeat_quarantine q where q.device_id = d.device_id limit v_settings.quarantine_per_device
      ) k
    ) >= v_settings.quarantine_per_device
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case when v_count = 0 then 'no device is at its limit'
    else format('%s devices have %s heartbeats there and no more are kept: %s', v_count, v_settings.quarantine_per_device, v_names) end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- keeps more of each; why they are refused: select * from fleet.heartbeat_quarantine',
      format('update fleet.settings set quarantine_per_device = %s;', least(greatest(v_settings.quarantine_per_device, 500) * 2, 100000))
    )
  end;
  return next;

  check_name := 'clocks';
  select count(*) filter (where ls.status = 'clock_skewed'), count(*) into v_count, v_total
  from fleet.device_last_status ls;
  status := case when v_count > 0 and v_count * 100 >= v_total then 'warn' else 'ok' end;
  detail := format('%s of %s devices give a time that is refused', v_count, v_total);
  remedy := case
    when status <> 'ok' then e'-- set the clocks of these; their next heartbeat clears it'
      '\nselect device_id, alias, cohort, last_ts, last_received_at from fleet.device_status '
      'where status = ''clock_skewed'' order by last_received_at desc limit 50;'
  end;
  return next;
end
$$;

comment on function fleet.check_ingest(timestamptz) is
  'What fleet.check() says of heartbeats: triggers, last status (of a sample of devices), quarantine and clocks.';
--! EndIncluded functions/check_ingest.sql
--! Included functions/check_scheduler.sql
create or replace function fleet.check_scheduler(p_now timestamptz default now())
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
  c_restart constant text := format(e'# in a shell, as the user of Postgres\npg_ctl restart -m fast -D ''%s''', v_directory);
  v_has_cron boolean := exists (select from pg_extension where extname = 'pg_cron');
  v_names text;
  v_commands text;
  v_role text;
begin
  check_name := 'monitoring';
  status := 'ok'; detail := 'the activity of other roles is visible'; remedy := null;
  if not pg_has_role('fleet_owner', 'pg_monitor', 'usage') or not pg_has_role('fleet_dba', 'pg_signal_backend', 'usage') then
    status := 'warn';
    detail := 'fleet_owner may not see the activity of other roles, or fleet_dba not end it: what is said below of sessions and the scheduler may be wrong';
    remedy := e'-- as superuser\ngrant pg_monitor to fleet_owner, fleet_dba;\ngrant pg_signal_backend to fleet_dba;';
  end if;
  return next;

  check_name := 'scheduler_roles';
  begin
    select string_agg(format('%s of %s', coalesce(j.jobname, 'job ' || j.jobid), j.username), ', '),
      string_agg(format('select cron.unschedule(%s);', j.jobid), e'\n')
    into v_names, v_commands
    from fleet_guard.lost_jobs() j;
  exception when undefined_function or insufficient_privilege then
    v_names := null;  -- set up before there was such a function
  end;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('pg_cron ends and starts again all the time, and runs no job, while the role of one is gone: ' || v_names, 'every job''s role is there');
  remedy := e'-- as superuser\n' || v_commands;
  return next;

  check_name := 'scheduler';
  status := 'ok'; detail := 'pg_cron runs'; remedy := null;
  if not v_has_cron and exists (
    select from fleet.events e where e.event = 'maintain.start' and e.at between p_now - interval '125 minutes' and p_now
  ) then
    detail := 'pg_cron is not in this database; the hourly maintenance arrives all the same';
  elsif not v_has_cron then
    status := 'warn'; detail := 'pg_cron is not in this database, and no maintenance ran in the last two hours';
    remedy := format(e'-- as superuser, in database %s\n', coalesce((select s.setting from pg_settings s where s.name = 'cron.database_name'), 'postgres, once pg_cron is there'))
      || (
        select string_agg(
          format(
            'select cron.schedule_in_database(%L, %L, %L, %L, ''fleet_owner'');', d.jobname, d.schedule, d.command, current_database()
          ), e'\n'
        )
        from fleet.job_definitions() d
      );
  elsif not exists (select from pg_stat_activity where backend_type = 'pg_cron launcher') then
    status := 'fail'; detail := 'the pg_cron launcher is gone: no job runs until Postgres is restarted'; remedy := c_restart;
  end if;
  return next;

  check_name := 'jobs';
  select string_agg(format('%s is %s%s', j.jobname, j.fault, ': ' || case j.fault when 'failed' then j.last_message end), ', '),
    string_agg(distinct
      case j.fault
        when 'missing' then 'select * from fleet.schedule_jobs();'
        when 'disabled' then format(
          'select cron.alter_job(jobid, active := true) from cron.job where jobname = %L and username = ''fleet_owner'';', j.jobname
        )
        else d.command || ';'
      end, e'\n'
    ),
    case
      when bool_or(j.fault = 'disabled') then e'-- as superuser\n'
      when bool_or(j.fault <> 'missing') then e'-- as fleet_owner; pg_cron''s next run of it clears this\n'
      else ''
    end
  into v_names, v_commands, v_role
  from (
    select h.*,
      case
        -- None has ever run, long after setup.
        when h.status = 'waiting' and bool_and(h.status = 'waiting') over ()
          and (select min(p.created_at) from fleet.hb_partitions p) < p_now - interval '3 hours' then 'late'
        else h.status
      end as fault
    from fleet.job_health h
    where v_has_cron
  ) j
  join fleet.job_definitions() d using (jobname)
  where j.fault not in ('ok', 'waiting');
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, case when v_has_cron then 'all jobs run' else 'their history is in the database of pg_cron' end);
  remedy := v_role || v_commands;
  return next;

  check_name := 'maintenance';
  select string_agg(format('%s %s: %s', e.event, e.partition_name, e.detail), '; '),
    case when bool_and(e.event = 'maintenance.premake') then 'call fleet.maintain();' else 'call fleet.nightly();' end
  into v_names, v_commands
  from (
    select distinct on (k.event, k.partition_name) k.*
    from fleet.events k
    where k.event like 'maintenance.%' and k.at > p_now - interval '25 hours'
    order by k.event, k.partition_name, k.event_id desc
  ) e
  where not e.is_ok;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'no step failed without a later success');
  remedy := case when v_names is not null then e'-- once its cause is mended\n' || v_commands end;
  return next;

  check_name := 'nights';
  status := 'ok'; detail := 'the last night''s work was begun'; remedy := null;
  if fleet.is_night_missed(p_now) then
    status := 'warn'; detail := 'fleet.nightly() was not begun for 25 hours'; remedy := 'call fleet.nightly();';
  end if;
  return next;

  check_name := 'locks_of_maintenance';
  select string_agg(format('%s is held by backend %s for %s', w.name, a.pid, date_trunc('second', p_now - a.query_start)), ', '),
    string_agg(format('select * from fleet.force_unlock(%L);', w.name), e'\n')
  into v_names, v_commands
  from unnest(array['maintenance', 'reconcile']) as w (name)
  join pg_locks l on l.locktype = 'advisory' and l.granted and l.objsubid = 1
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('fleet.' || w.name, 0)
  join pg_stat_activity a on a.pid = l.pid
  where a.query_start < p_now - interval '2 hours';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'none is held for long');
  remedy := v_commands;
  return next;
end
$$;

comment on function fleet.check_scheduler(timestamptz) is
  'What fleet.check() says of the scheduler: pg_cron, its jobs and roles, failed steps, missed nights and stuck locks.';
--! EndIncluded functions/check_scheduler.sql
--! Included functions/check_sessions.sql
create or replace function fleet.check_sessions(p_now timestamptz default now())
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
  v_faults text[];
  v_fault text;
  v_names text;
  v_commands text;
  v_max bigint := current_setting('max_connections')::bigint;
  v_used bigint;
  v_workers bigint;
  v_wanted bigint;
begin
  -- Who holds others up, who works for long, who waits in a transaction: found alike, ended alike.
  foreach v_fault in array array['blocking', 'long_transactions', 'idle_in_transaction'] loop
    check_name := v_fault;
    select string_agg(format('backend %s (%s, %s) for %s: %s', a.pid, a.usename, a.state, a.age, left(a.query, 60)), '; ' order by a.pid),
      case when bool_or(a.is_super) then e'-- as superuser\n' else '' end
      || string_agg(format('select pg_terminate_backend(%s);', a.pid), e'\n' order by a.pid)
    into v_names, v_commands
    from (
      select s.pid, s.usename, coalesce(s.state, s.backend_type) as state, s.query,
        date_trunc('second', greatest(p_now - coalesce(s.xact_start, s.query_start), '0')) as age,
        (select r.rolsuper from pg_roles r where r.oid = s.usesysid) as is_super
      from pg_stat_activity s
      where s.pid <> pg_backend_pid()
        and s.backend_type not in ('autovacuum worker', 'walsender')
        and case v_fault
          when 'long_transactions' then s.xact_start < p_now - interval '1 hour' and s.state is distinct from 'idle in transaction'
          when 'idle_in_transaction' then s.state like 'idle in transaction%' and s.state_change < p_now - interval '10 minutes'
          else s.pid in (
              select b.pid
              from pg_locks w
              cross join unnest(pg_blocking_pids(w.pid)) as b (pid)
              where not w.granted and w.waitstart < p_now - interval '3 seconds'
            )
            -- The first of a queue alone: the others go on when it ends.
            and cardinality(pg_blocking_pids(s.pid)) = 0
        end
    ) a;
    status := case when v_names is null then 'ok' else 'warn' end;
    detail := coalesce(v_names, 'none');
    remedy := v_commands;
    return next;
  end loop;

  check_name := 'prepared_transactions';
  select string_agg(format('%s of %s in %s since %s', x.gid, x.owner, x.database, date_trunc('second', x.prepared)), ', '),
    e'-- as superuser' || string_agg(
      case x.database when current_database() then '' else format(e'\n-- in database %s:', x.database) end
      || format(e'\nrollback prepared %L;', x.gid), '' order by x.database <> current_database(), x.database, x.prepared
    )
  into v_names, v_commands
  from pg_prepared_xacts x
  where x.prepared < p_now - interval '10 minutes';
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('forgotten, with its locks: ' || v_names, 'none is forgotten');
  remedy := v_commands;
  return next;

  check_name := 'replication_slots';
  select string_agg(format('%s keeps %s of WAL%s', r.slot_name, pg_size_pretty(r.kept), ' and rows since ' || r.xmin), ', '),
    e'-- as superuser; its replica has to be made anew\n'
    || string_agg(format('select pg_drop_replication_slot(%L);', r.slot_name), e'\n'),
    array_agg(case when r.kept > 4::bigint << 30 then 'fail' else 'warn' end)
  into v_names, v_commands, v_faults
  from (
    select s.slot_name, coalesce(age(s.xmin), age(s.catalog_xmin))::text || ' transactions ago' as xmin,
      pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, s.restart_lsn) as kept
    from pg_replication_slots s
    where not s.active
  ) r
  where r.kept > 256 << 20;
  status := case when v_names is null then 'ok' when 'fail' = any (v_faults) then 'fail' else 'warn' end;
  detail := coalesce('nobody reads ' || v_names, 'none keeps WAL that nobody reads');
  remedy := v_commands;
  return next;

  check_name := 'connections';
  select count(*) filter (where s.backend_type = 'client backend'), count(*) filter (where s.application_name = 'nexmdm listen')
  into v_used, v_workers
  from pg_stat_activity s;
  -- A worker has its pool, of 10 unless POOL_MAX says otherwise, and up to 4 beside it; the rest is for the archiver and people.
  v_wanted := greatest(v_workers * (10 + 4) + 50, ceil(v_used * 1.3));
  status := case when v_used >= 0.95 * v_max then 'fail' when v_used >= 0.8 * v_max or v_wanted > v_max then 'warn' else 'ok' end;
  detail := format('%s of %s in use; %s workers of the server may want %s', v_used, v_max, v_workers, v_wanted);
  remedy := case
    when status <> 'ok' then format(
      e'-- as superuser; then restart Postgres: pg_ctl restart -m fast -D ''%s''\nalter system set max_connections = %s;',
      v_directory, greatest(v_wanted, v_max) + 50
    )
  end;
  return next;
end
$$;

comment on function fleet.check_sessions(timestamptz) is
  'What fleet.check() says of sessions: who blocks others, long transactions, forgotten prepared ones, replication slots, connections.';
--! EndIncluded functions/check_sessions.sql
--! Included functions/check_storage.sql
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
  select * into strict v_settings from fleet.settings;

  check_name := 'autovacuum';
  select string_agg(c.relname, ', '), string_agg(format('alter table fleet.%I reset (autovacuum_enabled);', c.relname), e'\n')
  into v_names, v_commands
  from pg_class c
  where c.reloptions && array['autovacuum_enabled=false', 'autovacuum_enabled=off', 'autovacuum_enabled=0', 'autovacuum_enabled=no']
    and (
      c.relnamespace = 'fleet'::regnamespace and c.relkind = 'r' and not c.relispartition
      or c.oid in (select a.relid from fleet.attached_partitions() a where a.range_end > p_now)
    );
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('switched off for ' || v_names, 'it is on where rows change');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'dead_rows';
  v_dead := pg_stat_get_dead_tuples('fleet.device_last_status'::regclass);
  v_live := pg_stat_get_live_tuples('fleet.device_last_status'::regclass);
  status := case when v_dead > 5000 + v_live then 'warn' else 'ok' end;
  detail := format('device_last_status has %s dead rows beside %s', v_dead, v_live);
  remedy := case when status <> 'ok' then e'-- as fleet_owner\nvacuum (analyze) fleet.device_last_status;' end;
  return next;

  check_name := 'partitions_vacuumed';
  -- By the visibility map: the statistics on vacuums are lost in a crash. Small ones do not matter.
  select string_agg(a.partition_name, ', ' order by a.range_start),
    string_agg(format('vacuum (analyze) fleet.%I;', a.partition_name), e'\n' order by a.range_start)
  into v_names, v_commands
  from fleet.attached_partitions() a
  join pg_class c on c.oid = a.relid
  where a.range_end between p_now - interval '7 days' and p_now - interval '1 day'
    and pg_relation_size(a.relid) > 1 << 20
    and c.relallvisible * current_setting('block_size')::bigint < pg_relation_size(a.relid) / 2;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('past, and not vacuumed since: ' || v_names, 'the last days are vacuumed and analyzed');
  remedy := e'-- as fleet_owner\n' || v_commands;
  return next;

  check_name := 'wraparound';
  select age(d.datfrozenxid) into v_age from pg_database d where d.datname = current_database();
  status := case when v_age > 1500000000 then 'fail' when v_age > v_limit * 1.5 then 'warn' else 'ok' end;
  detail := format('the oldest row is %s transactions old; autovacuum freezes at %s, Postgres stops at 2 billion', v_age, v_limit);
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
  remedy := case when status <> 'ok' then e'-- as superuser; the oldest 50 tables, again until this is ok\n' || v_commands end;
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
  -- The free space of a disk is nothing that Postgres can ask for.
  status := case when v_last > 1 << 30 and v_last > 2 * v_usual then 'warn' else 'ok' end;
  detail := format(
    'the database has %s, WAL %s; yesterday''s heartbeats %s, a day before it %s on average, %s for a whole retention; free space is not seen from here',
    pg_size_pretty(pg_database_size(current_database())),
    coalesce(pg_size_pretty(v_wal), '?'),
    pg_size_pretty(coalesce(v_last, 0)), pg_size_pretty(coalesce(v_usual, 0)),
    pg_size_pretty((coalesce(greatest(v_last, v_usual), 0) * extract(epoch from v_settings.retention) / 86400)::bigint)
  );
  remedy := case
    when status <> 'ok' then format(
      e'# in a shell: is there room for the retention at this rate? If not: select fleet.set_retention(…); add disk\ndf -h ''%s''',
      v_directory
    )
  end;
  return next;
end
$$;

comment on function fleet.check_storage(timestamptz) is
  'What fleet.check() says of tables on disk: autovacuum, dead rows, wraparound, size and growth.';
--! EndIncluded functions/check_storage.sql
--! Included functions/check_settings.sql
-- The guidelines: shared_buffers about a quarter of the memory (4 GB at most, as npm start sets it), effective_cache_size half
-- to three quarters, work_mem 4 to 16 MB, autovacuum_naptime 10 s, statements slower than 250 ms in the log.
create or replace function fleet.check_settings()
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_directory text := coalesce((select s.setting from pg_settings s where s.name = 'data_directory'), '$PGDATA');
  c_restart constant text := format('pg_ctl restart -m fast -D ''%s''', v_directory);
  v_memory bigint;
  v_setting record;
begin
  begin
    v_memory := fleet_guard.memory_bytes();
  exception when undefined_function or insufficient_privilege then
    v_memory := null;  -- set up before there was such a function
  end;

  for v_setting in
    select w.*, s.pending_restart, s.context = 'postmaster' as needs_restart,
      coalesce(current_setting(w.name, true), 'unknown') as shown
    from (
      select k.name, k.guideline, k.advice, s.vartype = 'bool' and s.reset_val = 'on' or k.is_good as is_good
      from pg_settings s
      cross join lateral (select s.reset_val::numeric as n where s.vartype = 'integer' union all select null where s.vartype <> 'integer') v
      join lateral (
        values
          ('shared_buffers', 'a quarter of the memory', format('%sMB', least(v_memory >> 22, 4096)),
            v_memory is null or v.n * 8192 >= least(v_memory / 4, 4::bigint << 30) / 2),
          ('effective_cache_size', 'half to three quarters of the memory', format('%sMB', (v_memory * 0.6)::bigint >> 20),
            v_memory is null or v.n * 8192 between v_memory * 0.4 and v_memory),
          ('work_mem', '4 to 16 MB', '8MB', v.n between 4096 and 16384),
          ('autovacuum_naptime', '10 s', '10s', v.n <= 10),
          ('log_min_duration_statement', '250 ms', '250ms', v.n between 0 and 250),
          ('autovacuum', 'on', 'on', false),
          ('fsync', 'on, or a crash loses what was acknowledged', 'on', false),
          ('full_page_writes', 'on, or a crash loses what was acknowledged', 'on', false)
      ) as k (name, guideline, advice, is_good) on k.name = s.name
    ) w
    join pg_settings s on s.name = w.name
    order by w.name
  loop
    check_name := 'setting_' || v_setting.name;
    status := case when v_setting.is_good then 'ok' else 'warn' end;
    detail := format('%s; the guideline: %s', v_setting.shown, v_setting.guideline);
    if v_setting.guideline like '%of the memory' then
      detail := detail || coalesce(format(' (%s)', pg_size_pretty(v_memory)), ', which is not known here');
    end if;
    remedy := null;
    if not v_setting.is_good and v_setting.pending_restart then
      detail := detail || '; changed, and waits for a restart';
      remedy := e'# in a shell, as the user of Postgres\n' || c_restart;
    elsif not v_setting.is_good then
      remedy := format(
        e'-- as superuser%s\nalter system set %s = %L;\nselect pg_reload_conf();',
        case when v_setting.needs_restart then '; then restart Postgres: ' || c_restart end, v_setting.name, v_setting.advice
      );
    end if;
    return next;
  end loop;
end
$$;

comment on function fleet.check_settings() is
  'What fleet.check() says of the settings of Postgres: each against its guideline, with the value to set.';
--! EndIncluded functions/check_settings.sql
