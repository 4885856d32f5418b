create or replace function fleet.record_event(
  p_event text,
  p_partition text default null,
  p_rows bigint default null,
  p_duration_ms bigint default null,
  p_detail text default null,
  p_is_ok boolean default true,
  p_run_id bigint default null
) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.events (event, partition_name, rows, duration_ms, detail, is_ok, run_id)
  values (
    p_event, p_partition, p_rows, p_duration_ms, p_detail, p_is_ok,
    -- A procedure sets its run for the functions that it calls; see fleet.run_next_step().
    coalesce(p_run_id, nullif(current_setting('fleet.run_id', true), '')::bigint)
  );
$$;

comment on function fleet.record_event(text, text, bigint, bigint, text, boolean, bigint) is
  'Adds a row to fleet.events.';
