create or replace function fleet.upsert_last_status(p_beats fleet.device_heartbeats[], p_are_stored boolean) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows bigint;
  v_changed bigint[];
begin
  with newest as (
    select b.*, case when p_are_stored then b.ts end as stored_ts
    from unnest(p_beats) b
  )
--!include status/upsert_last_status.inc.sql
  return v_rows;
end
$$;

comment on function fleet.upsert_last_status(fleet.device_heartbeats[], boolean) is
  'Writes one heartbeat of each device to last status, as fleet.record_last_status() does for a batch: the newest of those that '
  'were stored, or of those that were refused (p_are_stored is false; last_ts then stays). Returns how many rows changed.';
