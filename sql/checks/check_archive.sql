create or replace function fleet.check_archive(p_now timestamptz default now())
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
  v_names text;
  v_commands text;
  v_months text;
  v_count bigint;
  v_age interval;
  v_silence interval;
begin
  perform fleet.not_in_future(p_now);
  select * into strict v_settings from fleet.settings;
  select p_now - max(a.last_seen_at) into v_silence
  from fleet.archivers a
  where a.last_seen_at <= greatest(p_now, clock_timestamp());  -- the clock may have run ahead

  check_name := 'archive_failed';
  -- One cause mostly stops all of them, so an error is said once, after the names of all partitions that have it.
  select string_agg(format('%s: %s', e.names, e.last_error), '; ' order by e.range_start),
    string_agg(e.commands, e'\n' order by e.range_start)
  into v_names, v_commands
  from (
    select p.last_error, min(p.range_start) as range_start, string_agg(p.partition_name, ', ' order by p.range_start) as names,
      string_agg(format('select fleet.retry_archive(%L);', p.partition_name), e'\n' order by p.range_start) as commands
    from fleet.hb_partitions p
    where p.state = 'archive_failed'
    group by p.last_error
  ) e;
  status := case when v_names is null then 'ok' else 'fail' end;
  detail := coalesce(v_names, 'none');
  remedy := e'-- once the cause is fixed\n' || v_commands;
  return next;

  check_name := 'archive_backlog';
  select count(*), p_now - min(p.detached_at) into v_count, v_age
  from fleet.hb_partitions p
  where p.state in ('detached', 'archiving') and p.held_reason is null;
  select string_agg(to_char(d, 'YYYY-MM') || coalesce(': ' || a.last_error, ''), ', ' order by d) into v_months
  from fleet.audit_months_due() d
  left join fleet.audit_archives a on a.month = d
  where d + interval '1 month 2 days' < p_now;
  status := case
    when v_count > 0 and v_age >= interval '2 days' then 'fail'
    when v_count > 0 and v_age >= interval '6 hours' or v_months is not null then 'warn'
    else 'ok'
  end;
  detail := format('%s partitions are waiting%s', v_count, ', the oldest for ' || date_trunc('second', v_age))
    || coalesce('; so does the audit log of ' || v_months, '');
  remedy := case
    when status = 'ok' then null
    when v_silence < interval '5 minutes' then 'select fleet.wake_archiver();'
    else e'# in a shell\nnpm run archiver -- --once'
  end;
  return next;

  check_name := 'archive_undropped';
  select string_agg(p.partition_name || coalesce(': ' || p.last_error, ''), ', ' order by p.range_start),
    string_agg(
      case
        -- Only a person can say which of the two is right.
        when p.last_error like '%differs from its archive%' then format(
          e'-- if the table is right:\nselect fleet.retry_archive(%1$L);\n'
            '-- if the archive is right:\n-- select fleet.accept_archive(%1$L, ''why'');',
          p.partition_name
        )
        else format('select fleet.drop_partition(%L);', p.partition_name)
      end, e'\n' order by p.range_start
    )
  into v_names, v_commands
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and (v_settings.proofs_needed = 1 or p.confirmed_at is not null)
    and p.proven_at + v_settings.archive_grace
      < p_now - case when p.last_error like '%differs from its archive%' then interval '0' else interval '6 hours' end;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('archived but not dropped: ' || v_names, 'no archived partition is overdue to be dropped');
  remedy := v_commands;
  return next;

  check_name := 'archive_unconfirmed';
  select string_agg(p.partition_name, ', ' order by p.range_start) into v_names
  from fleet.hb_partitions p
  where p.state = 'archived' and p.held_reason is null and v_settings.proofs_needed > 1 and p.confirmed_at is null
    and p.proven_at < p_now - interval '1 day';
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(
    'archived but not confirmed by a second login: ' || v_names, 'no archive is waiting for a second login to confirm it'
  );
  remedy := case when v_names is not null then e'# in a shell, with VERIFIER_DATABASE_URL\nnpm run archive -- confirm' end;
  return next;

  check_name := 'archiver';
  status := case when v_silence < interval '5 minutes' then 'ok' when v_silence is null then 'warn' else 'fail' end;
  detail := coalesce('last seen ' || date_trunc('second', v_silence) || ' ago', 'never seen');
  remedy := case when status <> 'ok' then e'# in a shell; it keeps running\nnpm run archiver' end;
  return next;

  check_name := 'restores';
  select string_agg(format('%s: %s', e.names, e.last_error), '; ' order by e.range_start),
    string_agg(e.commands, e'\n' order by e.range_start)
  into v_names, v_commands
  from (
    select i.last_error, min(p.range_start) as range_start, string_agg(i.partition_name, ', ' order by p.range_start) as names,
      string_agg(
        format('select fleet.request_restore(%L, %L);', p.range_start::date, (p.range_end - interval '1 day')::date),
        e'\n' order by p.range_start
      ) as commands
    from fleet.restore_items i
    join fleet.hb_partitions p using (partition_name)
    where i.state = 'failed' and i.finished_at > p_now - interval '1 day'
      and not exists (
        select from fleet.restore_items l where l.partition_name = i.partition_name and l.request_id > i.request_id
      )
    group by i.last_error
  ) e;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce('failed: ' || v_names, 'none failed in the last day');
  remedy := e'-- once the cause is fixed; npm run archive -- verify shows it\n' || v_commands;
  return next;
end
$$;

comment on function fleet.check_archive(timestamptz) is
  'The part of fleet.check() about the archive: failures, backlog, the archiver and restores.';
