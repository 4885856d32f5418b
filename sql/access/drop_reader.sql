create or replace function fleet.drop_reader(p_name text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_cohorts text[];
  v_is_known boolean;
  v_is_dropped boolean;
begin
  perform fleet.require_reader_logins();
  delete from fleet.readers r where r.reader = p_name returning r.cohorts into v_cohorts;
  v_is_known := found;
  v_is_dropped := fleet_guard.drop_reader(p_name);
  if not v_is_known and not v_is_dropped then
    perform fleet.no_such_reader(p_name);
  end if;
  perform fleet.audit(
    p_action => 'reader.dropped', p_target => 'reader:' || p_name, p_before => jsonb_build_object('cohorts', v_cohorts),
    p_after => null::jsonb
  );
end
$$;

comment on function fleet.drop_reader(text) is
  'Drops the login of a reader, and ends its sessions. Example: select fleet.drop_reader(''acme_dashboard'');';
