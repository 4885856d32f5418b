create or replace function fleet.marks_hold(p_age interval default null) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select m.marked_at <= now() and now() <= m.marked_at + m.base / 4
    and s.offline_after >= m.base and coalesce(p_age, s.offline_after) >= m.base
  from fleet.silence_marks m
  cross join fleet.settings s;
$$;

comment on function fleet.marks_hold(interval) is
  'Whether every device that has been silent for at least this long (default: settings.offline_after) has the mark '
  'device_last_status.is_silent. Devices that are asked for a heartbeat less than twice in that time are excepted. If false, '
  'read without the mark. See fleet.mark_silent().';
