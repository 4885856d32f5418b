create or replace function fleet.forget_import(p_source text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports;
begin
  select f.* into a from fleet.imports f where f.source = p_source for update;
  if not found then
    return false;
  end if;
  if a.state not in ('confirmed', 'abandoned') and fleet.source_table(a) is not null then
    raise exception using
      errcode = 'FL002',
      message = format('the import of %s is %s, and the table still exists', p_source, a.state),
      hint = format(
        'Confirm or abandon it first: select fleet.confirm_import(%1$L); or call fleet.abandon_import(%1$L);', p_source
      );
  end if;
  perform fleet.stop_forwarding(a);
  delete from fleet.import_ranges r where r.source = p_source;
  delete from fleet.import_refusals r where r.source = p_source;
  delete from fleet.import_days d where d.source = p_source;
  delete from fleet.import_devices d where d.source = p_source;
  delete from fleet.imports f where f.source = p_source;
  perform fleet.record_event('import.forgotten', p_detail => format('%s, by %s', p_source, (fleet.current_actor()).actor));
  perform fleet.audit('import.forgotten', 'import:' || p_source, jsonb_build_object('state', a.state));
  return true;
end
$$;

comment on function fleet.forget_import(text) is
  'Deletes what is recorded about the import of a table, once the import is confirmed or abandoned or the table is gone; false '
  'if nothing is recorded. Heartbeats stay. Example: select fleet.forget_import(''public.device_heartbeats'');';
