create or replace function fleet.end_overdue_readers() returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_reader record;
  v_count integer := 0;
begin
  -- Made by the administrator, with a right to end sessions that nobody here has.
  if to_regprocedure('fleet_guard.end_overdue_readers(interval, interval, interval)') is null then
    return 0;
  end if;
  for v_reader in execute 'select * from fleet_guard.end_overdue_readers()' loop
    perform fleet.record_event(
      'reader.ended', p_is_ok => v_reader.is_ended,
      p_detail => format('backend %s of %s: %s', v_reader.pid, v_reader.usename, v_reader.reason)
    );
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.end_overdue_readers() is
  'Ends sessions of fleet_reader that lifted their time limits and went beyond them; each is an event reader.ended. Returns how many. Run each minute by fleet.mark_silent(). Example: select fleet.end_overdue_readers();';
