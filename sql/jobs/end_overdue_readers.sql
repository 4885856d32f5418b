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
  -- The administrator created it at setup, because the owner may not end sessions.
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
exception when insufficient_privilege then
  -- The administrator who ran setup may not end sessions. A warning, because the caller has other work to do.
  raise warning using message = format('sessions of readers beyond their time limits cannot be ended: %s', sqlerrm),
    hint = 'As superuser: psql -f sql/setup/public.sql';
  return 0;
end
$$;

comment on function fleet.end_overdue_readers() is
  'Ends sessions of fleet_reader that raised their time limits and exceeded the original ones, and records an event reader.ended '
  'for each; returns how many. Run each minute by fleet.mark_silent(). Example: select fleet.end_overdue_readers();';
