create or replace function fleet.reported_values(p_payload jsonb) returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p_payload || jsonb_build_object('ip', fleet.stored_ip((p_payload ->> 'ip')::inet, s.store_ip))
  from fleet.settings s;
$$;

comment on function fleet.reported_values(jsonb) is
  'A heartbeat as it arrived, with as much of its address as settings.store_ip allows. '
  'Example: select fleet.reported_values(payload) from fleet.heartbeat_quarantine limit 1;';
