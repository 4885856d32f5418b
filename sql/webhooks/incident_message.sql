create or replace function fleet.incident_message(p_incident fleet.incidents, p_kind text, p_first_id text default null) returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'type', 'incident.' || case p_kind when 'recovery' then 'ended' else fleet.incident_event((p_incident).kind) end,
    'version', 1,
    'timestamp', case p_kind when 'recovery' then (p_incident).ended_at else (p_incident).seen_at end,
    'data', jsonb_build_object(
      'kind', p_kind,
      'first_id', p_first_id,
      'event', fleet.incident_event((p_incident).kind),
      'incident_id', (p_incident).incident_id,
      'subject', (p_incident).subject,
      'devices', (p_incident).devices,
      'began_at', (p_incident).began_at,
      'ended_at', (p_incident).ended_at
    )
  );
$$;

comment on function fleet.incident_message(fleet.incidents, text, text) is
  'The body of a message about an incident, in version 1 of its schema; see docs/webhooks.md.';
