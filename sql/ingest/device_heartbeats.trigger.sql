do $$
begin
  -- Citus refuses triggers on distributed tables; there, ingest does in its own statements what this does.
  if fleet.is_distributed() then
    return;
  end if;

  create or replace trigger device_heartbeats_record_last_status
    after insert on fleet.device_heartbeats
    referencing new table as new_rows
    for each statement execute function fleet.record_last_status();

  comment on trigger device_heartbeats_record_last_status on fleet.device_heartbeats is
    'Keeps fleet.device_last_status and fleet.late_arrivals up to date. Sees only the rows that are really stored.';
end
$$;
