create or replace function fleet.begin_verification(p_source regclass) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  a fleet.imports := fleet.get_import(p_source);
begin
  if a.state not in ('moved', 'verified') then
    raise exception using
      errcode = 'FL002',
      message = format('%s is %s and cannot be verified', a.source, a.state),
      hint = format('Move all of its rows first: call fleet.import_table(%L);', a.source);
  end if;
  perform fleet.take_import_lock();
  update fleet.imports f
  set state = 'moved', steps = '{survey,verify}', step = null, verified_xid = pg_snapshot_xmin(pg_current_snapshot()),
    backend = pg_backend_pid(), last_error = null
  where f.source = a.source;
  perform fleet.audit('import.verification_begun', 'import:' || a.source);
  return a.source;
end
$$;

comment on function fleet.begin_verification(regclass) is
  'Begins the verification of an import. Called by fleet.verify_import().';
