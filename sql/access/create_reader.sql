create or replace function fleet.create_reader(p_name text, p_cohorts text[]) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Assigned and never in a statement, which could be logged with its parameters.
  v_password text := fleet.make_token('nxr_');
  v_verifier text := fleet.scram_verifier(v_password);
  v_cohorts text[] := fleet.reader_cohorts(p_cohorts);
begin
  if fleet.is_distributed() then
    raise exception using
      errcode = 'FL002',
      message = 'this store is distributed, and only a plain store can have logins that see some cohorts',
      hint = 'Give the partner an API key instead: select fleet.create_api_key(…, p_cohorts => array[…]); See docs/scale-out.md.';
  end if;
  perform fleet.require_reader_logins();
  if exists (select from fleet.readers r where r.reader = p_name) then
    raise exception using
      errcode = 'FL409',
      message = format('a reader named %s already exists', p_name),
      hint = format('Choose another name, or change this one: select fleet.set_reader_cohorts(%1$L, …); '
        'or select fleet.renew_reader_password(%1$L);', p_name);
  end if;
  perform fleet_guard.create_reader(p_name, v_verifier);
  insert into fleet.readers (reader, cohorts) values (p_name, v_cohorts);
  perform fleet.audit(
    p_action => 'reader.created', p_target => 'reader:' || p_name, p_before => null::jsonb,
    p_after => jsonb_build_object('cohorts', v_cohorts)
  );
  return v_password;
end
$$;

comment on function fleet.create_reader(text, text[]) is
  'Makes a login of Postgres that reads the devices of these cohorts and nothing else, such as for the dashboard of a partner. '
  'Returns its password, which is shown only now. The cohorts need not exist yet. Logins can see each other''s names. '
  'Example: select fleet.create_reader(''acme_dashboard'', array[''acme'']);';
