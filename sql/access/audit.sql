create or replace function fleet.audit(
  p_action text,
  p_target text default null,
  p_before jsonb default null,
  p_after jsonb default null
) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.audit_log (actor, how, action, target, before, after, request_id, address)
  select a.actor, a.how, p_action, p_target, p_before, p_after, a.request_id, a.address
  from fleet.current_actor() a;
$$;

comment on function fleet.audit(text, text, jsonb, jsonb) is
  'Adds a row to fleet.audit_log, in the transaction of the deed. Example: '
  'perform fleet.audit(''device.revoked'', ''device:42'');';
