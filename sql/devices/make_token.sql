create or replace function fleet.make_token(p_prefix text) returns text
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  -- Three version 4 UUIDs hold 366 bits from Postgres's strong random source, without an extension. SHA-256 keeps 256.
  select p_prefix || encode(
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'hex'
  );
$$;

comment on function fleet.make_token(text) is
  'Returns a new random token of 256 bits in hex, after a prefix that shows its kind.';
