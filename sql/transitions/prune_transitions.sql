create or replace function fleet.prune_transitions(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_rows bigint;
begin
  perform fleet.not_in_future(p_now);
  delete from fleet.device_transitions t
  using fleet.settings s
  where t.at < p_now - s.transitions_keep;
  get diagnostics v_rows = row_count;
  delete from fleet.incidents i
  using fleet.settings s
  where i.ended_at < p_now - s.transitions_keep;
  return v_rows;
end
$$;

comment on function fleet.prune_transitions(timestamptz) is
  'Deletes transitions and ended incidents that are older than settings.transitions_keep; returns how many transitions. Called by '
  'fleet.prune().';
