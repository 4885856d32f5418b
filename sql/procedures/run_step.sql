-- A procedure that commits can have neither SET nor SECURITY DEFINER: what needs them is in the functions it calls.
create or replace procedure fleet.run_step(
  p_run_id bigint,
  p_step text,
  p_partition text,
  p_now timestamptz,
  inout p_failed integer,
  p_day date default null
)
language plpgsql
as $$
declare
  v_since timestamptz := pg_catalog.clock_timestamp();
  v_count bigint;
  v_error text;
begin
  for v_attempt in 1..5 loop
    v_error := null;
    begin
      perform pg_catalog.set_config('fleet.run_id', p_run_id::text, true);
      v_count := fleet.do_step(p_step, p_partition, p_now, p_day);
    exception when others then
      v_error := sqlerrm;
    end;
    commit;
    -- pg_partman reports a lock timeout under another error code, so its words decide. A long query over the whole parent
    -- is the usual cause: wait a moment, in no transaction, and try again.
    exit when v_error is null or v_error not like '%lock timeout%';
    perform pg_catalog.pg_sleep(0.2 * v_attempt);
    commit;
  end loop;

  if v_error is not null then
    p_failed := p_failed + 1;
    if p_step = 'premake' then
      perform fleet.count_up('partition_create_failures_total');
    end if;
  end if;
  perform fleet.record_event(
    'maintenance.' || p_step, p_partition, v_count, fleet.elapsed_ms(v_since),
    nullif(pg_catalog.concat_ws(': ', p_day, v_error), ''), v_error is null, p_run_id
  );
  commit;
end
$$;

comment on procedure fleet.run_step(bigint, text, text, timestamptz, integer, date) is
  'One step of maintenance in transactions of its own: retried while locks are busy, recorded in fleet.events, and never the end of the others.';
