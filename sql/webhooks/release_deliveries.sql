create or replace function fleet.release_deliveries(p_worker text) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_released bigint;
begin
  update fleet.webhook_deliveries
  set lease_owner = null, next_attempt_at = now()
  where lease_owner = p_worker and state = 'pending';
  get diagnostics v_released = row_count;
  return v_released;
end
$$;

comment on function fleet.release_deliveries(text) is
  'Gives back the messages that this notifier has not finished, so that another one can send them at once. Returns how many.';
