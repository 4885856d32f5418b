-- Only assignments of plpgsql, no statements: Postgres can log the parameters of a statement, and so the password
-- (auto_explain.log_nested_statements).
create or replace function fleet.scram_verifier(p_password text, p_salt bytea default null) returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_iterations constant integer := 4096;
  v_salt bytea := coalesce(
    p_salt, substring(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) from 1 for 16)
  );
  v_inner bytea := fleet.hmac_pad(convert_to(p_password, 'UTF8'), 54);
  v_outer bytea := fleet.hmac_pad(convert_to(p_password, 'UTF8'), 92);
  v_round bytea;
  v_sum bit(256);
  v_salted bytea := '\x'::bytea;
  v_client_key bytea;
  v_server_key bytea;
begin
  if p_password is null or p_password !~ '^[\x21-\x7e]{1,200}$' then
    raise exception using
      errcode = 'FL422',
      message = 'a password must have 1 to 200 characters of ASCII without spaces',
      hint = 'Other characters are not the same bytes for all clients.';
  end if;
  -- PBKDF2 (RFC 8018) for one block.
  v_round := sha256(v_outer || sha256(v_inner || v_salt || '\x00000001'::bytea));
  v_sum := ('x' || encode(v_round, 'hex'))::bit(256);
  for v_i in 2..c_iterations loop
    v_round := sha256(v_outer || sha256(v_inner || v_round));
    v_sum := v_sum # ('x' || encode(v_round, 'hex'))::bit(256);
  end loop;
  for v_i in 0..7 loop
    v_salted := v_salted || int4send(substring(v_sum from 1 + 32 * v_i for 32)::integer);
  end loop;

  v_inner := fleet.hmac_pad(v_salted, 54);
  v_outer := fleet.hmac_pad(v_salted, 92);
  v_client_key := sha256(v_outer || sha256(v_inner || 'Client Key'::bytea));
  v_server_key := sha256(v_outer || sha256(v_inner || 'Server Key'::bytea));
  return format(
    'SCRAM-SHA-256$%s:%s$%s:%s', c_iterations, encode(v_salt, 'base64'), encode(sha256(v_client_key), 'base64'),
    encode(v_server_key, 'base64')
  );
end
$$;

comment on function fleet.scram_verifier(text, bytea) is
  'What Postgres stores instead of a password (SCRAM-SHA-256, RFC 5802 and 7677), so that a role can be given one without the '
  'password in a statement or a log. Without p_salt the salt is random.';
