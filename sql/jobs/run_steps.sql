create or replace function fleet.run_steps(p_run_id bigint)
returns table (step text, partition_name text, detail text, rows bigint, duration_ms bigint, ok boolean)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select e.event, e.partition_name, e.detail, e.rows, e.duration_ms, e.is_ok
  from fleet.events e
  where e.run_id = p_run_id
  order by e.event_id;
$$;

comment on function fleet.run_steps(bigint) is
  'What one run of fleet.nightly() or fleet.maintain() did. Example: call fleet.nightly(); then, with the run_id that it '
  'returns: select * from fleet.run_steps(1);';
