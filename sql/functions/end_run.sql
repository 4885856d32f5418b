create or replace function fleet.end_run(p_run_id bigint, p_kind text, p_failed integer) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.record_event(
    p_kind || '.end', p_run_id => p_run_id, p_is_ok => p_failed = 0,
    p_detail => case when p_failed > 0 then format('%s steps failed', p_failed) end,
    p_duration_ms => fleet.elapsed_ms(
      (select e.at from fleet.events e where e.run_id = p_run_id and e.event = p_kind || '.start')
    )
  );
  perform pg_advisory_unlock(hashtextextended('fleet.maintenance', 0));
  if p_failed > 0 then
    raise warning using
      message = format('%s steps of run %s failed', p_failed, p_run_id),
      hint = format('See select * from fleet.run_steps(%s) where not ok;', p_run_id);
  end if;
end
$$;

comment on function fleet.end_run(bigint, text, integer) is 'Ends a run of maintenance and frees its lock.';
