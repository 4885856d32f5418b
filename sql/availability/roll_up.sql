create or replace function fleet.roll_up(p_day date, p_now timestamptz default now(), p_late_only boolean default false)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_devices integer := fleet.roll_up_day(p_day, p_now, p_late_only);
begin
  if not p_late_only or v_devices > 0 then
    perform fleet.audit(
      'day.rolled_up', 'day:' || p_day, p_after => jsonb_build_object('devices', v_devices, 'late_only', p_late_only)
    );
  end if;
  return v_devices;
end
$$;

comment on function fleet.roll_up(date, timestamptz, boolean) is
  'Counts the availability of each device on one past UTC day from its heartbeats, stores it in '
  'fleet.device_availability_daily, and returns the number of devices. With p_late_only, counts again only the devices of a '
  'rolled-up day whose heartbeats came late. Called by fleet.nightly() and fleet.maintain(). '
  'Example: select fleet.roll_up(current_date - 1);';
