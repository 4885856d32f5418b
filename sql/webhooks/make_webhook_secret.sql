create or replace function fleet.make_webhook_secret() returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  -- As the Standard Webhooks specification writes a secret: 32 random bytes in base64.
  select 'whsec_' || encode(
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64'
  );
$$;

comment on function fleet.make_webhook_secret() is 'Returns a new random secret with which messages are signed.';
