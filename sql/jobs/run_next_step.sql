create or replace function fleet.run_next_step(p_run_id bigint, p_attempt integer default 1) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_next fleet.planned_steps;
  v_since timestamptz := clock_timestamp();
  v_count bigint;
  v_error text;
begin
  loop
    select s.* into v_next
    from fleet.planned_steps s
    -- Only in the session that planned the steps and still holds the lock.
    where s.run_id = p_run_id and s.pid = pg_backend_pid()
      and exists (select from fleet.lock_holders('maintenance') h where h = pg_backend_pid())
    order by s.position
    limit 1;
    if not found then
      return 'over';
    end if;
    exit when v_next.step not like 'plan\_%';

    insert into fleet.planned_steps (run_id, position, step, partition_name, day, retention, as_of, pid)
    select p_run_id, v_next.position + d.position, d.step, d.partition_name, d.day, v_next.retention, v_next.as_of, v_next.pid
    from (
      select r.action as step, r.partition_name, r.day, row_number() over (order by r.day) as position
      from fleet.rollup_plan(v_next.as_of) r
      where v_next.step = 'plan_' || r.action and r.state in ('active', 'restored')
      union all
      select 'retire', r.partition_name, null, row_number() over (order by r.range_start)
      from fleet.retention_plan(v_next.retention, v_next.as_of) r
      where v_next.step = 'plan_retire' and r.action = 'retire'
      union all
      -- The heartbeats that were quarantined since max_late was raised. Readers do not wait for them: it is another transaction.
      select u.step, r.partition_name, null, row_number() over (order by r.range_start, u.nth)
      from fleet.settle_plan(v_next.as_of) r
      cross join (values (1, 'unsettle'), (2, 'replay')) as u (nth, step)
      where v_next.step = 'plan_unsettle' and r.action = 'unsettle'
      union all
      -- One partition and then the plan again, as long as the budget lasts. Each is tried once in a night.
      select u.step, case u.step when 'settle' then n.partition_name end, null, u.nth
      from (
        select r.partition_name
        from fleet.settle_plan(v_next.as_of) r
        where v_next.step = 'plan_settle' and r.action = 'settle'
          and not exists (
            select from fleet.events e
            where e.run_id = p_run_id and e.event = 'maintenance.settle' and e.partition_name = r.partition_name
          )
          and (
            select coalesce(sum(e.duration_ms), 0)
            from fleet.events e
            where e.run_id = p_run_id and e.event = 'maintenance.settle'
          ) < (select extract(epoch from s.settle_budget) * 1000 from fleet.settings s)
        order by r.range_start desc
        limit 1
      ) n
      cross join (values (1, 'settle'), (2, 'plan_settle')) as u (nth, step)
    ) d;
    delete from fleet.planned_steps s where s.run_id = p_run_id and s.position = v_next.position;
  end loop;

  begin
    perform set_config('fleet.run_id', p_run_id::text, true);
    v_count := fleet.do_step(v_next.step, v_next.partition_name, v_next.as_of, v_next.day);
  exception when others then
    v_error := sqlerrm;
  end;
  -- pg_partman reports a lock timeout under another error code, so its message decides.
  if v_error like '%lock timeout%' and p_attempt < 5 then
    return 'busy';
  end if;

  if v_error is not null and v_next.step = 'premake' then
    perform fleet.increment_counter('partition_create_failures_total');
  end if;
  perform fleet.record_event(
    'maintenance.' || v_next.step, v_next.partition_name, v_count, fleet.elapsed_ms(v_since),
    nullif(concat_ws(': ', v_next.day, v_error), ''), v_error is null, p_run_id
  );
  delete from fleet.planned_steps s where s.run_id = p_run_id and s.position = v_next.position;
  return case when v_error is null then 'done' else 'failed' end;
end
$$;

comment on function fleet.run_next_step(bigint, integer) is
  'Runs the next step that fleet.begin_run() planned for this run in this session, and records it in fleet.events. Returns done, '
  'failed, over (no step is left) or busy (a lock was not available: commit, wait and call again).';
