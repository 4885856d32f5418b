create or replace function fleet.webhook_events() returns text[]
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select array[
    'late', 'offline', 'clock_skewed', 'unity_down', 'online', 'back', 'revoked', 'cohort_silent', 'network_silent', 'ingest_down'
  ];
$$;

comment on function fleet.webhook_events() is
  'The events that a webhook can ask for: those of fleet.device_transitions, and those of incidents. '
  'Example: select fleet.webhook_events();';
