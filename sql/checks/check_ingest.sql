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
  c_clocks constant integer := 3;
  v_settings fleet.settings;
  v_names text;
  v_commands text;
  v_count bigint;
  v_total bigint;
  v_start bigint;
  v_sample bigint[];
  v_found bigint[];
  v_lost bigint[];  -- enrolled devices without a row of last status
  v_ahead bigint;
  -- As variables, so that the planner locks only these partitions, and does not wait for one that is being settled.
  v_from timestamptz := p_now - interval '1 day';
  v_to timestamptz;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  v_to := p_now + v_settings.max_future;

  check_name := 'triggers';
  -- What the migrations made has to be there; whatever else is disabled on the store's tables is named as well.
  select string_agg(distinct format('%s on %s', f.name, f.relation), ', '),
    concat_ws(
      e'\n',
      case when bool_or(f.is_internal) then '-- as superuser' else '-- as fleet_owner' end,
      string_agg(distinct f.command, e'\n'),
      -- While they were off, last status was not kept, and the guard learned nothing.
      case when bool_or(f.name = 'device_heartbeats_record_last_status') then 'select fleet.backfill_last_status(1);' end,
      case
        when bool_or(f.name = 'hb_partitions_protect') then 'update fleet.hb_partitions set partition_name = partition_name;'
      end
    )
  into v_names, v_commands
  from (
    select r.relation, r.trigger_name as name, r.definition || ';' as command, false as is_internal
    from fleet.recorded_triggers r
    where not exists (
      select from pg_trigger g where g.tgrelid = to_regclass(r.relation) and g.tgname = r.trigger_name
    )
    union all
    select g.tgrelid::regclass::text, case when g.tgisinternal then 'a foreign key' else g.tgname::text end,
      format(
        'alter table %s enable trigger %s;',
        g.tgrelid::regclass, case when g.tgisinternal then 'all' else quote_ident(g.tgname) end
      ),
      g.tgisinternal
    from pg_trigger g
    join pg_class c on c.oid = g.tgrelid
    where c.relnamespace = 'fleet'::regnamespace and g.tgenabled not in ('O', 'A')
  ) f;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce('disabled or missing: ' || v_names, 'all are on');
  remedy := case when v_names is not null then v_commands end;
  return next;

  check_name := 'last_status';
  select floor(random() * greatest(coalesce(max(d.device_id), 0) - c_sample, 0)) into v_start from fleet.devices d;
  v_sample := array(select s.device_id from fleet.devices s where s.device_id > v_start order by s.device_id limit c_sample);
  -- One statement stores a heartbeat and updates last status, so any difference is drift.
  select count(*) filter (where ls.last_ts is null or ls.last_ts < h.ts), count(*) into v_count, v_total
  from fleet.device_last_status ls
  cross join lateral (
    select b.ts
    from fleet.device_heartbeats b
    where b.device_id = ls.device_id and b.ts >= v_from and b.ts <= v_to
    order by b.ts desc
    limit 1
  ) h
  where ls.device_id = any (v_sample);
  v_found := array(select ls.device_id from fleet.device_last_status ls where ls.device_id = any (v_sample));
  v_lost := array(select u.device_id from unnest(v_sample) as u (device_id) where u.device_id <> all (v_found));
  if cardinality(v_lost) > 0 then
    select v_count + count(distinct b.device_id), v_total + count(distinct b.device_id) into v_count, v_total
    from fleet.device_heartbeats b
    where b.device_id = any (v_lost) and b.ts >= v_from and b.ts <= v_to;
  end if;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := format('last status is behind the newest heartbeat for %s of %s devices in the sample', v_count, v_total);
  v_ahead := 0;
  if fleet.may_be_ahead(p_now) then
    select count(*), min(ls.device_id) into v_ahead, v_start
    from fleet.device_last_status ls
    where greatest(ls.last_ts, ls.last_received_at) > v_to;
  end if;
  if v_ahead > 0 then
    status := 'warn';
    detail := format(
      '%s; %s devices were last heard from in the future, such as device %s, because the clock of Postgres ran ahead',
      detail, v_ahead, v_start
    );
  end if;
  remedy := case when status <> 'ok' then 'select fleet.backfill_last_status(1);' end;
  return next;

  check_name := 'quarantine';
  select sum(r.n), string_agg(format('%s %s', r.n, r.reason), ', ' order by r.reason),
    string_agg(
      case r.reason
        when 'no_partition' then format('select fleet.create_partitions(%L, %L);', r.first::date, r.last::date)
        -- Heartbeats beyond the retention are never stored.
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
    where q.received_at > p_now - interval '1 hour' and q.received_at <= greatest(p_now, clock_timestamp())
    group by q.reason
  ) r;
  status := case when coalesce(v_count, 0) < 100 then 'ok' else 'warn' end;
  detail := format('%s heartbeats quarantined in the last hour', coalesce(v_names, 'no'));
  remedy := case
    when status <> 'ok' then concat_ws(
      e'\n', '-- accepts such heartbeats from now on, and stores those in quarantine', v_commands,
      'select * from fleet.replay_quarantine();'
    )
  end;
  return next;

  check_name := 'quarantine_full';
  v_sample := array(select ls.device_id from fleet.device_last_status ls where ls.status = 'clock_skewed' limit 1000)
    || array(select distinct q.device_id from fleet.heartbeat_quarantine q where q.received_at > p_now - interval '1 hour');
  select count(*), string_agg(f.device_id::text, ', ' order by f.device_id) filter (where f.nth <= 10) into v_count, v_names
  from (
    select q.device_id, row_number() over (order by q.device_id) as nth
    from fleet.heartbeat_quarantine q
    where q.device_id = any (v_sample)
    group by q.device_id
    having count(*) >= v_settings.quarantine_per_device
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case v_count
    when 0 then 'no device has reached its limit'
    else format(
      '%s devices have %s heartbeats in quarantine, and more are discarded: %s',
      v_count, v_settings.quarantine_per_device, v_names
    )
  end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- keeps more for each device; to see why they are refused: select * from fleet.heartbeat_quarantine',
      format(
        'update fleet.settings set quarantine_per_device = %s;',
        least(greatest(v_settings.quarantine_per_device, 500) * 2, 100000)
      )
    )
  end;
  return next;

  check_name := 'clocks';
  select f.clock_skewed, f.devices into v_count, v_total
  from fleet.fleet_summary f
  where f.cohort = '(all)';
  select string_agg(format('%s %s', coalesce(d.alias, 'device ' || d.device_id), d.clock), ', ' order by d.device_id)
  into v_names
  from (
    select s.device_id, s.alias, coalesce(fleet.describe_clock(s.device_id), 'was wrong') as clock
    from fleet.list_devices('clock_skewed', p_limit => c_clocks) s
  ) d;
  status := case when v_count > 0 and v_count * 100 >= v_total then 'warn' else 'ok' end;
  detail := format('the clocks of %s of %s devices are wrong%s', v_count, v_total, ': ' || v_names)
    || case when v_count > c_clocks then ', …' else '' end;
  remedy := case
    when status <> 'ok' then e'-- set the clocks of these devices; the next heartbeat of each clears this'
      '\nselect device_id, alias, cohort, fleet.describe_clock(device_id) as clock, last_received_at '
      'from fleet.list_devices(''clock_skewed'', p_limit => 50);'
  end;
  return next;
end
$$;

comment on function fleet.check_ingest(timestamptz) is
  'The part of fleet.check() about heartbeats: triggers, last status (of a sample of devices), quarantine and clocks.';
