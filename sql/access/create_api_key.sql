create or replace function fleet.create_api_key(
  p_name text,
  p_scopes text[],
  p_cohorts text[] default null,
  p_expires_at timestamptz default null
) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_scopes constant text[] := array['read', 'metrics', 'enroll', 'command', 'operate'];
  v_key text := fleet.make_token('nxk_');
  v_scopes text[] := (select array_agg(distinct s order by s) from unnest(p_scopes) s);
  v_cohorts text[] := (select array_agg(distinct c order by c) from unnest(p_cohorts) c);
begin
  -- It is shown as a label of metrics, and ADMIN_KEY is the name of the server's own key.
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$' or p_name = 'ADMIN_KEY' then
    raise exception using
      errcode = 'FL422',
      message = 'name must have 1 to 64 letters, digits, spaces or . _ @ -, begin with a letter or digit, and not be ADMIN_KEY',
      hint = 'Example: select fleet.create_api_key(''grafana'', ''{read}'');';
  end if;
  if v_scopes is null or not v_scopes <@ c_scopes or array_position(v_scopes, null) is not null then
    raise exception using
      errcode = 'FL422',
      message = format('scopes must be some of %s, not %s', array_to_string(c_scopes, ', '), coalesce(p_scopes::text, 'null')),
      hint = 'Example: select fleet.create_api_key(''grafana'', ''{read}'');';
  end if;
  if p_cohorts is not null and (
    v_cohorts is null or cardinality(v_cohorts) > 100 or exists (select from unnest(p_cohorts) c where c is null or btrim(c) = '' or length(c) > 100)
  ) then
    raise exception using
      errcode = 'FL422',
      message = 'cohorts must be null or at most 100 names of 1 to 100 characters',
      hint = 'Example: select fleet.create_api_key(''partner'', ''{read}'', ''{lobby,shop}'');';
  end if;
  if v_cohorts is not null and v_scopes && array['metrics', 'operate'] then
    raise exception using
      errcode = 'FL422',
      message = 'a key with cohorts cannot have the scopes metrics and operate, which are about the whole store',
      hint = 'Leave out these scopes, or leave out the cohorts.';
  end if;
  if p_expires_at <= now() then
    raise exception using
      errcode = 'FL422',
      message = format('expires_at must be in the future, not %s', p_expires_at),
      hint = 'Leave it out for a key that does not expire.';
  end if;
  insert into fleet.api_credentials (key_name, token_hash, scopes, cohorts, created_by, expires_at)
  values (p_name, fleet.hash_token(v_key), v_scopes, v_cohorts, (fleet.current_actor()).actor, p_expires_at)
  on conflict (key_name) do nothing;
  if not found then
    raise exception using
      errcode = 'FL409',
      message = format('an API key named %s already exists', p_name),
      hint = 'Choose another name: names are unique, including those of revoked keys. For a new key of the same name: '
        'select fleet.rotate_api_key(…);';
  end if;
  perform fleet.audit(
    'api_key.created', 'api_key:' || p_name,
    p_after => jsonb_build_object('scopes', v_scopes, 'cohorts', v_cohorts, 'expires_at', p_expires_at)
  );
  return v_key;
end
$$;

comment on function fleet.create_api_key(text, text[], text[], timestamptz) is
  'Creates an API key and returns it. It is shown only now. Scopes: read (devices and their changes, the ops page), metrics, '
  'enroll (devices and their tokens), command, operate (maintenance, and the buttons of the ops page). With cohorts the key '
  'knows only their devices. Example: select fleet.create_api_key(''partner'', ''{read,command}'', ''{lobby}'');';
