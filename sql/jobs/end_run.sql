create or replace function fleet.end_run(p_run_id bigint) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_start fleet.events;
  v_failed integer;
begin
  select e.* into v_start
  from fleet.events e
  where e.run_id = p_run_id and e.event in ('nightly.start', 'maintain.start')
    and exists (select from fleet.lock_holders('maintenance') h where h = pg_backend_pid());
  if not found then
    raise exception using
      errcode = 'FL404',
      message = format('maintenance run %s is not running in this session', coalesce(p_run_id::text, 'null')),
      hint = 'call fleet.nightly(); and call fleet.maintain(); begin and end their runs themselves.';
  end if;
  v_failed := (
    select count(*) from fleet.events e where e.run_id = p_run_id and e.event like 'maintenance.%' and not e.is_ok
  );
  delete from fleet.planned_steps s where s.run_id = p_run_id;
  perform fleet.record_event(
    split_part(v_start.event, '.', 1) || '.end', p_run_id => p_run_id, p_is_ok => v_failed = 0,
    p_detail => case when v_failed > 0 then format('%s steps failed', v_failed) end,
    p_duration_ms => fleet.elapsed_ms(v_start.at)
  );
  perform pg_advisory_unlock(hashtextextended('fleet.maintenance', 0));
  if v_failed > 0 then
    raise warning using
      message = format('%s steps of run %s failed', v_failed, p_run_id),
      hint = format('See select * from fleet.run_steps(%s) where not ok;', p_run_id);
  end if;
end
$$;

comment on function fleet.end_run(bigint) is
  'Ends a run of maintenance in this session: records the result and releases the lock.';
