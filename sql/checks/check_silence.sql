create or replace function fleet.check_silence(p_now timestamptz default now())
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
  v_newest timestamptz;
  v_ahead bigint;
  v_names text;
  v_commands text;
  v_is_fleet boolean;
  v_muted text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'heartbeats';
  v_newest := fleet.newest_received_at(p_now);
  v_ahead := 0;
  if fleet.may_be_ahead(p_now) then
    select count(*) into v_ahead
    from fleet.device_last_status ls
    where ls.last_received_at > (select p_now + s.max_future from fleet.settings s);
  end if;
  status := 'ok'; remedy := null;
  detail := coalesce(
    case when fleet.counts_hold(p_now) then 'one' else 'the last one' end
      || ' arrived ' || date_trunc('second', p_now - v_newest) || ' ago',
    'no heartbeat has arrived yet'
  );
  if v_ahead > 0 then
    detail := format(
      '%s; the clock of Postgres ran ahead: %s devices seem to have been heard from in the future',
      case when v_newest is null then 'when the last one arrived is unknown' else detail end, v_ahead
    );
    status := case when v_newest is null then 'warn' else 'ok' end;
    remedy := case when v_newest is null then 'select fleet.backfill_last_status(1);' end;
  end if;
  if fleet.is_ingest_down(v_newest, p_now) then
    status := 'fail';
    detail := format(
      'no device was heard from for %s; unless all are switched off, the cause is the servers, the proxy in front of them, or the '
      'network',
      date_trunc('second', p_now - v_newest)
    );
    remedy := e'-- is a server connected? If not, start one (npm run server). If so, see RUNBOOK.md, "Heartbeats are refused"\n'
      'select usename, application_name, state, count(*) from pg_stat_activity where usename like ''fleet%'' '
      'group by 1, 2, 3 order by 1, 2, 3;';
  end if;
  return next;

  check_name := 'silent_cohorts';
  select
    string_agg(
      format(
        '%s: %s of %s devices since %s, usually %s %%',
        a.cohort, a.gone_quiet, a.active, to_char(a.window_start, 'HH24:MI'), round((100 * a.usual_share)::numeric)
      ),
      '; ' order by a.place
    ) filter (where a.is_alarming),
    string_agg(
      format(
        'select device_id, alias, last_ts, network_type, agent_version, ip from fleet.device_status '
        'where %sstatus in (''late'', ''offline'') order by last_ts desc limit 50;',
        case when a.place > 1 then format('cohort = %L and ', a.cohort) end
      ),
      e'\n' order by a.place
    ) filter (where a.is_alarming),
    bool_or(a.is_alarming and a.place = 1),
    max(a.muted_reason) filter (where a.place = 1 and a.muted_reason in ('ingest_down', 'ingest_resumed', 'unwatched'))
  into v_names, v_commands, v_is_fleet, v_muted
  from (select l.*, row_number() over () as place from fleet.silence_at(p_now) l) a;
  status := case when v_names is null then 'ok' when v_is_fleet then 'fail' else 'warn' end;
  detail := coalesce(
    'gone quiet: ' || v_names,
    format('not evaluated: %s', v_muted),
    'no more devices have gone quiet than usual'
  );
  remedy := e'-- what do these devices share: a place, a network, a version? This clears when they send again\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_silence(timestamptz) is
  'The part of fleet.check() about silence: no heartbeat from any device, and cohorts in which more devices have gone quiet than '
  'usual.';
