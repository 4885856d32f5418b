create or replace function fleet.count_up(p_counter text, p_by numeric default 1) returns void
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

comment on function fleet.count_up(text, numeric) is 'Adds to a total in fleet.counters.';
