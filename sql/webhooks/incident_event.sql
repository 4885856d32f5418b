create or replace function fleet.incident_event(p_kind text) returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case p_kind when 'ingest' then 'ingest_down' else p_kind || '_silent' end;
$$;

comment on function fleet.incident_event(text) is 'The event of webhooks for a kind of fleet.incidents.';
