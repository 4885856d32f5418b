create or replace function fleet.device_message(
  p_transition fleet.device_transitions, p_alias text, p_event text, p_kind text, p_first_id text default null,
  p_began_at timestamptz default null
) returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'type', 'device.' || p_event,
    'version', 1,
    'timestamp', (p_transition).at,
    'data', jsonb_build_object(
      'kind', p_kind,
      'first_id', p_first_id,
      'event', p_event,
      'device', jsonb_build_object('id', (p_transition).device_id, 'alias', p_alias, 'cohort', (p_transition).cohort),
      'status', (p_transition).status,
      'since', (p_transition).since,
      'previous_status', (p_transition).previous_status,
      'previous_since', (p_transition).previous_since,
      'reason', (p_transition).reason,
      'battery_pct', (p_transition).battery_pct,
      'network_type', (p_transition).network_type,
      'agent_version', (p_transition).agent_version,
      'transition_id', (p_transition).transition_id,
      'began_at', coalesce(p_began_at, (p_transition).since)
    )
  );
$$;

comment on function fleet.device_message(fleet.device_transitions, text, text, text, text, timestamptz) is
  'The body of a message about a device, in version 1 of its schema; see docs/webhooks.md.';
