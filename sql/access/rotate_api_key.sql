create or replace function fleet.rotate_api_key(p_name text, p_overlap interval default interval '1 day') returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text := fleet.make_token('nxk_');
  v_old fleet.api_credentials := fleet.get_api_key(p_name);
begin
  if v_old.revoked_at is not null then
    raise exception using
      errcode = 'FL409',
      message = format('the API key %s was revoked at %s', p_name, date_trunc('second', v_old.revoked_at)),
      hint = 'Create a key of another name: select fleet.create_api_key(…);';
  end if;
  if p_overlap is null or p_overlap < interval '0' or p_overlap > interval '30 days' then
    raise exception using
      errcode = 'FL422',
      message = format('overlap must be between 0 and 30 days, not %s', coalesce(p_overlap::text, 'null')),
      hint = 'Example: select fleet.rotate_api_key(''grafana'', ''1 hour''); With 0 the old key stops at once.';
  end if;
  update fleet.api_credentials c
  set token_hash = fleet.hash_token(v_key),
    previous_hash = case when p_overlap > interval '0' then c.token_hash end,
    previous_until = case when p_overlap > interval '0' then now() + p_overlap end
  where c.key_id = v_old.key_id;
  perform fleet.audit('api_key.rotated', 'api_key:' || p_name, p_after => jsonb_build_object('overlap', p_overlap));
  return v_key;
end
$$;

comment on function fleet.rotate_api_key(text, interval) is
  'Gives an API key a new secret, which is shown only now. Until the overlap ends, the one before it is valid, too; any older one '
  'stops at once. Example: select fleet.rotate_api_key(''grafana'', ''1 hour'');';
