create or replace function fleet.begin_import(
  p_source regclass,
  p_columns jsonb,
  p_unknown_devices text,
  p_oldest timestamptz,
  p_forward boolean
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports;
  v_old fleet.imports;
begin
  perform fleet.take_import_lock();
  begin
    perform fleet.relink_tables();
    select f.* into v_old from fleet.imports f where f.relid = p_source;
    if v_old.state = 'abandoning' then
      raise exception using
        errcode = 'FL002',
        message = format('the import of %s is being abandoned', v_old.source),
        hint = format('Let that finish first: call fleet.abandon_import(%L);', v_old.source);
    end if;
    -- An option that is not given keeps its value from the first call.
    a := fleet.describe_source(
      p_source, coalesce(p_columns, v_old.columns), coalesce(p_unknown_devices, v_old.unknown_devices),
      coalesce(p_oldest, case when v_old.is_oldest_given then v_old.oldest end), coalesce(p_forward, v_old.forwards)
    );
  exception when others then
    perform pg_advisory_unlock(hashtextextended('fleet.import', 0));
    raise;
  end;

  -- If this oid is new, everything recorded under its name belongs to an earlier table.
  delete from fleet.import_days d where d.source = a.source and v_old.relid is null;
  delete from fleet.imports f where f.source = a.source and f.relid <> a.relid;

  if v_old.state = 'moving'
    and (v_old.columns, v_old.unknown_devices, v_old.match_by) = (a.columns, a.unknown_devices, a.match_by)
    and p_oldest is null and v_old.forwards = a.forwards
  then
    update fleet.imports f
    set step_started_at = clock_timestamp(), step_from = f.step_done, step_rows = 0, backend = pg_backend_pid(), last_error = null
    where f.relid = p_source;
    perform fleet.record_event('import.resume', p_detail => format('%s, pass %s, by %s', a.source, v_old.pass, (fleet.current_actor()).actor));
    perform fleet.audit('import.resumed', 'import:' || a.source);
    return a.source;
  end if;

  insert into fleet.imports as f (
    source, relid, state, steps, pass, columns, unknown_devices, oldest, is_oldest_given, forwards, match_by, store_ip, backend
  )
  values (
    a.source, a.relid, 'moving', '{survey,enroll,partitions,forward,move}', 1, a.columns, a.unknown_devices, a.oldest,
    a.is_oldest_given, a.forwards, a.match_by, a.store_ip, pg_backend_pid()
  )
  on conflict (source) do update
    set state = excluded.state, steps = excluded.steps, pass = f.pass + 1, columns = excluded.columns,
      unknown_devices = excluded.unknown_devices, oldest = excluded.oldest, is_oldest_given = excluded.is_oldest_given,
      forwards = excluded.forwards, match_by = excluded.match_by, backend = excluded.backend,
      step = null, last_error = null, confirmed_at = null, abandoned_at = null,
      -- After confirmation or abandonment a new import begins. Until then it is the same one: abandoning it writes back
      -- everything received since its first start.
      started_at = case when f.state in ('confirmed', 'abandoned') then now() else f.started_at end,
      store_ip = case when f.state in ('confirmed', 'abandoned') then excluded.store_ip else f.store_ip end;
  perform fleet.record_event('import.start', p_detail => format('%s, by %s', a.source, (fleet.current_actor()).actor));
  perform fleet.audit(
    'import.begun', 'import:' || a.source,
    p_after => jsonb_build_object(
      'columns', a.columns, 'unknown_devices', a.unknown_devices, 'oldest', a.oldest, 'forward', a.forwards
    )
  );
  return a.source;
end
$$;

comment on function fleet.begin_import(regclass, jsonb, text, timestamptz, boolean) is
  'Begins the import of a table, or resumes it where it stopped. Called by fleet.import_table().';
