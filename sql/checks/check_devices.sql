create or replace function fleet.check_devices(p_now timestamptz default now())
returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set jit = off
set lock_timeout = '300ms'
as $$
#variable_conflict use_column
declare
  -- More than that have one cause in common, such as an interval that was changed.
  c_candidates constant integer := 10000;
  c_named constant integer := 10;
  v_day date;
  v_candidates bigint[];
  v_count bigint;
  v_names text;
  v_commands text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'shared_tokens';
  select max(r.day) into v_day
  from fleet.rolled_up_days r
  where r.day between p_now::date - 3 and p_now::date - 1
    and exists (select from fleet.rolled_up_days b where b.day = r.day - 1);

  v_candidates := array(
    select a.device_id
    from fleet.device_availability_daily a
    where a.day = v_day and a.beats > a.expected * 1.5 + 10
    order by a.device_id
    limit c_candidates
  );
  -- Two days in a row, because a clock that jumps back, or heartbeats of an import, can double one. A device that was slowed
  -- sent more before, so its shortest interval of these days and the day before them counts.
  select count(*),
    string_agg(
      format('device %s (%s) sent %s heartbeats instead of %s', f.device_id, f.alias, f.beats, f.expected),
      '; ' order by f.nth
    ) filter (where f.nth <= c_named),
    string_agg(format('select fleet.renew_token(%s);', f.device_id), e'\n' order by f.nth) filter (where f.nth <= c_named)
  into v_count, v_names, v_commands
  from (
    select l.device_id, l.alias, l.beats, l.expected, row_number() over (order by l.excess desc, l.device_id) as nth
    from (
      select a.device_id, a.alias, max(a.beats) filter (where a.day = v_day) as beats,
        max(a.expected) filter (where a.day = v_day) as expected,
        count(*) filter (where a.day >= v_day - 1 and a.beats > 1.5 * a.expected + 10) as days,
        max(a.beats / greatest(a.expected, 1.0)) filter (where a.day = v_day) as excess
      from (
        select w.device_id, w.day, w.beats, d.alias,
          round(
            w.expected * extract(epoch from w.heartbeat_interval) / extract(epoch from least(d.heartbeat_interval, w.shortest))
          )::integer as expected
        from (
          select o.device_id, o.day, o.beats, o.expected, o.heartbeat_interval,
            min(o.heartbeat_interval) over (partition by o.device_id) as shortest
          from fleet.device_availability_daily o
          where o.device_id = any (v_candidates) and o.day between v_day - 2 and v_day
        ) w
        join fleet.devices d on d.device_id = w.device_id
        where w.day >= v_day - 1 and d.revoked_at is null
          -- After a new token or interval, only the days that follow count.
          and (d.changed_at is null or d.changed_at < (v_day - 1)::timestamptz)
      ) a
      group by a.device_id, a.alias
    ) l
    where l.days = 2
  ) f;
  status := case when v_count = 0 then 'ok' else 'warn' end;
  detail := case
    when v_day is null then 'no two days are rolled up yet'
    when v_count = 0 then format('no device sent more than expected on %s and the day before', v_day)
    else format(
      '%s devices sent more than 1.5 times as many heartbeats as expected on %s and the day before: %s%s',
      v_count, v_day, v_names, case when v_count > c_named then '; …' end
    )
  end;
  remedy := case
    when v_count > 0 then concat_ws(
      e'\n', '-- was an image cloned? Then enroll each copy (fleet.enroll_device), and give the device the token that this prints',
      v_commands
    )
  end;
  return next;
end
$$;

comment on function fleet.check_devices(timestamptz) is
  'The part of fleet.check() about devices: those that sent more than 1.5 times as many heartbeats as expected on the last two '
  'days that are rolled up, because several of them use one token. Reads the rollups, and no heartbeats. '
  'Example: select * from fleet.check_devices();';
