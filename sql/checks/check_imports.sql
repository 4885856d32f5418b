create or replace function fleet.check_imports(p_now timestamptz default now())
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
  v_commands text;
  v_names text;
begin
  perform fleet.not_in_future(p_now);
  check_name := 'imports';
  select string_agg(f.source || ' ' || f.fault, ', ' order by f.source), string_agg(f.command, e'\n' order by f.source)
  into v_names, v_commands
  from (
    select a.source,
      case
        when c.oid is null then 'is gone'
        when cardinality(a.steps) > 0 then 'stopped' || coalesce(': ' || a.last_error, '')
        else format('has been %s since %s', a.state, a.started_at::date)
      end as fault,
      case
        when c.oid is null then format('select fleet.forget_import(%L);', a.source)
        when a.state = 'moving' then format('call fleet.import_table(%L);', a.source)
        when a.state = 'abandoning' then format('call fleet.abandon_import(%L);', a.source)
        when a.state = 'moved' then format('call fleet.verify_import(%L);', a.source)
        else format('select fleet.confirm_import(%L);', a.source)
      end as command
    from fleet.imports a
    left join pg_class c on c.oid = fleet.source_table(a)
    where a.state in ('moving', 'moved', 'verified', 'abandoning')
      and (
        c.oid is null
        or cardinality(a.steps) > 0 and not exists (select from fleet.lock_holders('import') h where h = a.backend)
        -- No partition is retired while an import is open.
        or a.started_at < p_now - interval '30 days'
      )
  ) f;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'no import has stopped or been open for 30 days');
  remedy := v_commands;
  return next;

  check_name := 'import_forwards';
  select string_agg(distinct f.fault, ', '), string_agg(distinct format('call fleet.import_table(%L);', f.source), e'\n')
  into v_names, v_commands
  from (
    select a.source, e.detail as fault
    from fleet.imports a
    join fleet.events e on e.event = 'import.forward' and starts_with(e.detail, a.source || ': ')
      and e.at > p_now - interval '1 hour' and e.at > coalesce(a.moved_at, a.started_at)
    where a.state in ('moving', 'moved', 'verified')
    union all
    select a.source, format('the trigger fleet_forward on %s is missing or disabled, so new rows are not forwarded', a.source)
    from fleet.imports a
    join pg_class c on c.oid = fleet.source_table(a)
    where a.state in ('moving', 'moved', 'verified') and a.forwards and not 'forward' = any (a.steps)
      and not exists (
        select from pg_trigger g where g.tgrelid = c.oid and g.tgname = 'fleet_forward' and g.tgenabled in ('O', 'A')
      )
  ) f;
  status := case when v_names is null then 'ok' else 'warn' end;
  detail := coalesce(v_names, 'what is written into tables that are being imported reaches the store');
  remedy := v_commands;
  return next;
end
$$;

comment on function fleet.check_imports(timestamptz) is
  'The part of fleet.check() about plain tables that are being imported: imports that stopped or stay open for long, and '
  'triggers that fail.';
