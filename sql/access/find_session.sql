create or replace function fleet.find_session(p_session bytea)
returns table (actor text, login text, scopes text[], cohorts text[], is_open boolean)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.actor, s.login, coalesce(k.scopes, s.scopes), case when s.key_id is null then s.cohorts else k.cohorts end,
    s.ended_at is null and s.ends_at > now() and (s.key_id is null or k.key_id is not null)
  from fleet.sessions s
  -- Of a key that was revoked, has expired or was replaced, nothing is found.
  left join fleet.api_credentials k on k.key_id = s.key_id and k.revoked_at is null
    and (k.token_hash = s.key_hash or k.previous_hash = s.key_hash and k.previous_until > now())
    and (k.expires_at is null or k.expires_at > now())
  where s.session_hash = p_session;
$$;

comment on function fleet.find_session(bytea) is
  'The session of the ops page with this SHA-256, and whether it is open. A session that was opened with an API key has the '
  'scopes and cohorts of the key, and ends with it.';
