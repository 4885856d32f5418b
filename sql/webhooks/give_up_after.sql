create or replace function fleet.give_up_after() returns interval
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select interval '3 days';
$$;

comment on function fleet.give_up_after() is 'How long a message is tried before it is dead.';
