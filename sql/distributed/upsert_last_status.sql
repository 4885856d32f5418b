create or replace function fleet.upsert_last_status(p_beats fleet.device_heartbeats[], p_are_stored boolean) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_now timestamptz := now();
  v_bound timestamptz;
  v_lag interval;
  v_rows bigint;
begin
  select v_now + s.max_future, fleet.allowed_lag(s.offline_after, s.max_late) into v_bound, v_lag from fleet.settings s;
    with newest as (
      select b.*, case when p_are_stored then b.ts end as stored_ts
      from unnest(p_beats) b
    )
--!include distributed/upsert_last_status.inc.sql
  return v_rows;
end
$$;

comment on function fleet.upsert_last_status(fleet.device_heartbeats[], boolean) is
  'The form of fleet.upsert_last_status() for a distributed store: writes one heartbeat of each device to last status and notes no '
  'transitions. Returns how many rows changed.';
