create or replace function fleet.check_erasures(p_now timestamptz default now())
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
  v_failed text;
  v_retries text;
  v_slow text;
  v_unconfirmed boolean;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'erasures';
  -- By the number of the erasure, because more people see this than may know the device.
  -- A store that does not answer stops all of them, so an error is said once, after the numbers of all that have it.
  select string_agg(format('%s: %s', f.names, f.last_error), '; ' order by f.erasure_id),
    string_agg(f.commands, e'\n' order by f.erasure_id)
  into v_failed, v_retries
  from (
    select e.last_error, min(e.erasure_id) as erasure_id,
      string_agg('erasure ' || e.erasure_id, ', ' order by e.erasure_id) as names,
      string_agg(format('select fleet.retry_erasure(%s);', e.erasure_id), e'\n' order by e.erasure_id) as commands
    from fleet.erasure_progress e
    where e.state = 'running'
      and (
        exists (select from fleet.erasure_items i where i.erasure_id = e.erasure_id and i.last_error is not null)
        or e.last_error is not null and e.requested_at < p_now - interval '1 hour'
      )
    group by e.last_error
  ) f;
  select string_agg(
      format('erasure %s, with %s partitions and %s archives left', e.erasure_id, e.partitions_left, e.archives_left),
      '; ' order by e.erasure_id
    ),
    bool_or(exists (
      select from fleet.erasure_items i
      cross join fleet.settings s
      where i.erasure_id = e.erasure_id and i.recorded_at is not null and i.archive_at is null and i.confirmed_at is null
        and s.proofs_needed > 1
    ))
  into v_slow, v_unconfirmed
  from fleet.erasure_progress e
  where e.state = 'running' and e.requested_at < p_now - interval '1 day';
  status := case when v_failed is not null then 'fail' when v_slow is not null then 'warn' else 'ok' end;
  detail := coalesce(v_failed, 'running for more than a day: ' || v_slow, 'no erasure has failed or is stuck');
  remedy := case
    when v_failed is not null then e'-- once the cause is fixed\n' || v_retries || e'\ncall fleet.run_erasures();'
    when v_unconfirmed then e'# in a shell, with VERIFIER_DATABASE_URL\nnpm run archive -- confirm'
    when v_slow is not null then 'call fleet.run_erasures();'
  end;
  return next;
end
$$;

comment on function fleet.check_erasures(timestamptz) is
  'The part of fleet.check() about erasures: those that failed, and those that do not end.';
