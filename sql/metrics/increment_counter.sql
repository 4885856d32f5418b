create or replace function fleet.increment_counter(p_counter text, p_by numeric default 1) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.counters as c (counter, total)
  values (p_counter, p_by)
  on conflict (counter) do update
    set total = c.total + excluded.total;
$$;

comment on function fleet.increment_counter(text, numeric) is 'Adds to a total in fleet.counters.';
