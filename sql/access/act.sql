-- Everything is set for the transaction only, because a pool may give the connection to another request afterwards. A session
-- that runs nightly() keeps it across the transactions of that procedure.
create or replace function fleet.act(
  p_how text,
  p_actor text,
  p_credential bytea,
  p_scope text,
  p_request_id text,
  p_address text,
  p_is_local boolean default true
) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_scopes text[];
  v_cohorts text[];
begin
  if p_actor is null or btrim(p_actor) = '' then
    raise exception using errcode = 'FL422', message = 'actor must not be empty', hint = 'Name the key or the person.';
  end if;
  if p_credential is not null then
    if p_how = 'key' then
      select k.scopes, k.cohorts into v_scopes, v_cohorts from fleet.find_api_key(p_credential) k;
    else
      select case when s.is_open then s.scopes end, s.cohorts into v_scopes, v_cohorts from fleet.find_session(p_credential) s;
      if not found and p_actor = 'ADMIN_KEY' then
        -- It began while the database was unreachable. The server has checked its signature.
        v_scopes := array[p_scope];
      end if;
    end if;
    -- It was valid when the request came in.
    if v_scopes is null or p_scope <> all (v_scopes) then
      raise exception using
        errcode = 'FL401',
        message = format('the %s was revoked, has ended or may no longer do this', p_how),
        hint = 'Nothing was done. Log in again, or take a valid key.';
    end if;
  end if;
  perform set_config('fleet.how', p_how, p_is_local), set_config('fleet.actor', p_actor, p_is_local),
    set_config('fleet.request_id', coalesce(p_request_id, ''), p_is_local),
    set_config('fleet.address', coalesce(p_address, ''), p_is_local),
    set_config('fleet.cohorts', coalesce(to_jsonb(v_cohorts)::text, ''), p_is_local);
  return true;
end
$$;

comment on function fleet.act(text, text, bytea, text, text, text, boolean) is
  'Says for the rest of the transaction who acts through the server, so that fleet.audit() records it and the functions for '
  'devices know only the cohorts of the key. Checks once more that the key or session is valid and has the scope; the '
  'server''s ADMIN_KEY, as a key, has no hash here. Called in the statement of each deed that comes over HTTP.';
