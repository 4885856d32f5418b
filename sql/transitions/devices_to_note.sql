create or replace function fleet.devices_to_note(p_now timestamptz default now()) returns bigint[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
as $$
begin
  return (
    select array_agg(f.device_id order by f.device_id)
    from (
      select ls.device_id
      from fleet.device_last_status ls
      where case
        when ls.late_after_s is null then true
        when ls.last_received_at is null then ls.noted_status is distinct from 'new' and ls.noted_status is distinct from 'revoked'
        -- Cheap conditions: most devices are left out by the first, because they were heard from a moment ago.
        when p_now - ls.last_received_at <= greatest(ls.late_after_s, ls.next_in_s) * interval '1 second' then
          ls.noted_status is distinct from case ls.status when 'ok' then 'online' else ls.status end
          and ls.noted_status is distinct from 'revoked'
        -- In a cohort that is slowed down, most devices are heard from more rarely than their own interval says.
        when ls.noted_status = case ls.status when 'ok' then 'online' else ls.status end and exists (select from fleet.cohorts) then
          p_now - ls.last_received_at > (
            select fleet.late_after(
              fleet.expected_interval(d.heartbeat_interval, c.min_interval, c.last_interval, c.changed_at, p_now)
            )
            from fleet.devices d
            left join fleet.cohorts c using (cohort)
            where d.device_id = ls.device_id
          )
        when ls.noted_status = 'offline' then p_now - ls.last_received_at <= (select s.offline_after from fleet.settings s)
          or ls.noted_since <= ls.last_received_at or ls.noted_since > p_now
        else ls.noted_status is distinct from 'revoked'
      end
      offset 0
    ) f
  );
end
$$;

comment on function fleet.devices_to_note(timestamptz) is
  'The devices whose status may have changed since it was last noted, by cheap conditions; null if there are none. '
  'Example: select fleet.devices_to_note();';
