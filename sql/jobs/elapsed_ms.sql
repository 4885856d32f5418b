create or replace function fleet.elapsed_ms(p_since timestamptz) returns bigint
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select (extract(epoch from clock_timestamp() - p_since) * 1000)::bigint;
$$;

comment on function fleet.elapsed_ms(timestamptz) is 'Milliseconds from the given time until now, by the clock.';
