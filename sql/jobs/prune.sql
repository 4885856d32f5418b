create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_settings fleet.settings;
  v_last_day date;
  v_quarantined bigint;
  v_events bigint;
  v_commands bigint;
  v_dispatches bigint;
  v_rollups bigint;
  v_messages bigint;
  v_transitions bigint;
  v_audited bigint;
begin
  select * into strict v_settings from fleet.settings;
  v_last_day := (p_now - greatest(v_settings.rollups_keep, v_settings.retention) - interval '1 microsecond')::date;
  delete from fleet.heartbeat_quarantine q
  where q.received_at < p_now - v_settings.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  where e.at < p_now - v_settings.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.device_commands c
  where c.created_at < p_now - v_settings.commands_keep;
  get diagnostics v_commands = row_count;
  delete from fleet.command_dispatch_log l
  where l.at < p_now - v_settings.commands_keep;
  get diagnostics v_dispatches = row_count;
  delete from fleet.device_transitions t
  where t.at < p_now - v_settings.transitions_keep;
  get diagnostics v_transitions = row_count;
  delete from fleet.incidents i
  where i.ended_at < p_now - v_settings.transitions_keep;
  delete from fleet.device_unreadable_fields f
  where f.last_at < p_now - v_settings.quarantine_keep;
  delete from fleet.device_slowdowns d
  where d.last_at < p_now - v_settings.quarantine_keep;
  delete from fleet.device_availability_daily a
  where a.day <= v_last_day;
  get diagnostics v_rollups = row_count;
  delete from fleet.rolled_up_days r
  where r.day <= v_last_day;
  delete from fleet.late_arrivals l
  where l.day <= v_last_day;
  delete from fleet.storage_daily d
  where d.day < p_now - v_settings.rollups_keep;
  delete from fleet.cohorts c
  where c.min_interval is null and c.changed_at < p_now - interval '7 days';
  delete from fleet.slo_counts c
  where c.minute < p_now - interval '7 days';
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  delete from fleet.webhook_deliveries d
  -- What waits is not pruned, and neither is the first message of a trouble that lasts: its recovery names it.
  where d.made_at < p_now - v_settings.webhook_keep and d.state <> 'pending' and not d.is_open;
  get diagnostics v_messages = row_count;
  v_audited := fleet.prune_audit_log();
  delete from fleet.sessions s
  where s.ends_at < p_now - interval '7 days';
  delete from fleet.notifiers n
  where n.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches + v_rollups + v_transitions + v_messages + v_audited;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Deletes quarantined heartbeats, events, commands, transitions, rollups, messages to webhooks and rows of the audit log '
  'that are older than their settings; returns how many. Run by fleet.nightly().';
