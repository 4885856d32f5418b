create or replace function fleet.renew_reader_password(p_name text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Assigned and never in a statement, which could be logged with its parameters.
  v_password text := fleet.make_token('nxr_');
  v_verifier text := fleet.scram_verifier(v_password);
begin
  perform fleet.require_reader_logins();
  perform from fleet.readers r where r.reader = p_name for update;
  if not found then
    perform fleet.no_such_reader(p_name);
  end if;
  -- A dump has the row but not the login.
  if not fleet_guard.set_reader_password(p_name, v_verifier) then
    perform fleet_guard.create_reader(p_name, v_verifier);
  end if;
  perform fleet.audit(
    p_action => 'reader.password_renewed', p_target => 'reader:' || p_name, p_before => null::jsonb, p_after => null::jsonb
  );
  return v_password;
end
$$;

comment on function fleet.renew_reader_password(text) is
  'Gives a reader another password, which is shown only now, and ends its sessions. Makes its login again if that is missing, as '
  'after a dump was restored into another cluster. Example: select fleet.renew_reader_password(''acme_dashboard'');';
