do $$
begin
  -- Citus refuses triggers on distributed tables.
  if fleet.is_distributed() then
    return;
  end if;

  create or replace trigger device_last_status_add_last_status
    after delete on fleet.device_last_status
    referencing old table as changed
    for each statement execute function fleet.add_last_status();

  comment on trigger device_last_status_add_last_status on fleet.device_last_status is
    'A row that is deleted by hand comes back empty, as if its device had just been enrolled.';
end
$$;
