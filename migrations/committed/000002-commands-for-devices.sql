--! Previous: sha1:3049aa638ec4482720c5bf9cff43c111ead20a1b
--! Hash: sha1:b70eaa0b86d5b0eb79b035403a8b0d4f5c4eefde
--! Message: commands for devices

alter table fleet.settings
  add column command_expires_after interval not null default '7 days',
  add column commands_keep interval not null default '30 days',
  add constraint settings_command_expires_after_range check (command_expires_after > '0'),
  add constraint settings_commands_keep_range check (commands_keep >= command_expires_after);
comment on column fleet.settings.command_expires_after is 'A command that is older than this is no longer handed to its device.';
comment on column fleet.settings.commands_keep is 'How long commands and their dispatch log are kept.';

create table fleet.device_commands (
  device_id bigint not null,
  command_id bigint generated always as identity,
  command text not null,
  payload jsonb,
  created_at timestamptz not null default now(),
  created_by text not null default session_user,
  acknowledged_at timestamptz,
  constraint device_commands_pkey primary key (device_id, command_id)
);
comment on table fleet.device_commands is
  'Commands for devices. Each is handed over at every poll until the device acknowledges it or settings.command_expires_after has passed.';
comment on column fleet.device_commands.device_id is 'fleet.devices.device_id.';
comment on column fleet.device_commands.command_id is 'Order of the commands, and the name by which a device acknowledges one.';
comment on column fleet.device_commands.command is 'What to do, as the agent names it.';
comment on column fleet.device_commands.payload is 'Its arguments, any JSON; null when there are none.';
comment on column fleet.device_commands.created_at is 'When it was sent.';
comment on column fleet.device_commands.created_by is 'The login that sent it.';
comment on column fleet.device_commands.acknowledged_at is 'When the device first acknowledged it; null until then.';
create index device_commands_waiting_idx on fleet.device_commands (device_id, command_id) where acknowledged_at is null;
comment on index fleet.device_commands_waiting_idx is 'What a device still has to be handed.';
create index device_commands_created_at_idx on fleet.device_commands (created_at);
comment on index fleet.device_commands_created_at_idx is 'For pruning by age.';

create table fleet.command_dispatch_log (
  device_id bigint not null,
  command_id bigint not null,
  dispatch_id bigint generated always as identity,
  event text not null,
  at timestamptz not null default now(),
  constraint command_dispatch_log_pkey primary key (device_id, command_id, dispatch_id),
  constraint command_dispatch_log_event_known check (event in ('sent', 'handed_over', 'acknowledged'))
);
comment on table fleet.command_dispatch_log is
  'What became of each command, append-only: sent, each handed_over, acknowledged. Written by the statement that does it.';
comment on column fleet.command_dispatch_log.device_id is 'fleet.devices.device_id.';
comment on column fleet.command_dispatch_log.command_id is 'fleet.device_commands.command_id.';
comment on column fleet.command_dispatch_log.dispatch_id is 'Order of the entries.';
comment on column fleet.command_dispatch_log.event is 'sent, handed_over or acknowledged.';
comment on column fleet.command_dispatch_log.at is 'When.';
create index command_dispatch_log_at_idx on fleet.command_dispatch_log (at);
comment on index fleet.command_dispatch_log_at_idx is 'For pruning by age.';

--! Included functions/send_command.sql
create or replace function fleet.send_command(p_device_id bigint, p_command text, p_payload jsonb default null)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_command_id bigint;
begin
  if p_command is null or btrim(p_command) = '' or length(p_command) > 64 then
    raise exception using
      errcode = 'FL422',
      message = 'command must have 1 to 64 characters',
      hint = 'Example: select fleet.send_command(42, ''restart_unity'');';
  end if;
  if octet_length(p_payload::text) > 65536 then
    raise exception using
      errcode = 'FL422',
      message = format('the payload has %s bytes, more than 65536', octet_length(p_payload::text)),
      hint = 'Put large things where the device can fetch them, and send the address.';
  end if;
  with sent as (
    insert into fleet.device_commands (device_id, command, payload)
    select d.device_id, p_command, nullif(p_payload, 'null')
    from fleet.devices d
    where d.device_id = p_device_id and d.revoked_at is null
    returning device_id, command_id
  ),
  logged as (
    insert into fleet.command_dispatch_log (device_id, command_id, event)
    select s.device_id, s.command_id, 'sent'
    from sent s
  )
  select s.command_id into v_command_id
  from sent s;
  if v_command_id is null then
    raise exception using
      errcode = 'FL404',
      message = format('there is no device %s, or it is revoked', coalesce(p_device_id::text, 'null')),
      hint = 'Find it by alias: select device_id, alias from fleet.device_status;';
  end if;
  return v_command_id;
end
$$;

comment on function fleet.send_command(bigint, text, jsonb) is
  'Sends a command to a device, which gets it at its next poll; returns its command_id. Example: select fleet.send_command(42, ''set_volume'', ''{"percent":30}'');';
--! EndIncluded functions/send_command.sql
--! Included functions/take_commands.sql
create or replace function fleet.take_commands(p_device_id bigint)
returns table (command_id bigint, command text, payload jsonb, created_at timestamptz)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with waiting as materialized (
    select c.command_id, c.command, c.payload, c.created_at
    from fleet.device_commands c
    cross join fleet.settings s
    where c.device_id = p_device_id
      and c.acknowledged_at is null
      and c.created_at > now() - s.command_expires_after
    order by c.command_id
    limit 100  -- one answer stays small; the rest follows once these are acknowledged
  ),
  logged as (
    insert into fleet.command_dispatch_log (device_id, command_id, event)
    select p_device_id, w.command_id, 'handed_over'
    from waiting w
  )
  select w.command_id, w.command, w.payload, w.created_at
  from waiting w
  order by w.command_id;
$$;

comment on function fleet.take_commands(bigint) is
  'Hands a device its commands, oldest first, at most 100, and logs that. A command comes again until it is acknowledged: the answer may have been lost. Example: select * from fleet.take_commands(42);';
--! EndIncluded functions/take_commands.sql
--! Included functions/ack_command.sql
create or replace function fleet.ack_command(p_device_id bigint, p_command_id bigint) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  with acknowledged as (
    update fleet.device_commands
    set acknowledged_at = now()
    where device_id = p_device_id and command_id = p_command_id and acknowledged_at is null
    returning device_id, command_id
  )
  insert into fleet.command_dispatch_log (device_id, command_id, event)
  select a.device_id, a.command_id, 'acknowledged'
  from acknowledged a;
  if found then
    return true;
  end if;
  if not exists (select from fleet.device_commands where device_id = p_device_id and command_id = p_command_id) then
    raise exception using
      errcode = 'FL404',
      message = format('device %s has no command %s', coalesce(p_device_id::text, 'null'), coalesce(p_command_id::text, 'null')),
      hint = 'Commands are forgotten after settings.commands_keep.';
  end if;
  return false;
end
$$;

comment on function fleet.ack_command(bigint, bigint) is
  'A device says that it has a command; it is handed over no more. False when it was acknowledged before. Example: select fleet.ack_command(42, 7);';
--! EndIncluded functions/ack_command.sql
--! Included functions/prune.sql
create or replace function fleet.prune(p_now timestamptz default now()) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_quarantined bigint;
  v_events bigint;
  v_commands bigint;
  v_dispatches bigint;
begin
  delete from fleet.heartbeat_quarantine q
  using fleet.settings s
  where q.received_at < p_now - s.quarantine_keep;
  get diagnostics v_quarantined = row_count;
  delete from fleet.events e
  using fleet.settings s
  where e.at < p_now - s.events_keep;
  get diagnostics v_events = row_count;
  delete from fleet.device_commands c
  using fleet.settings s
  where c.created_at < p_now - s.commands_keep;
  get diagnostics v_commands = row_count;
  delete from fleet.command_dispatch_log l
  using fleet.settings s
  where l.at < p_now - s.commands_keep;
  get diagnostics v_dispatches = row_count;
  delete from fleet.archivers a
  where a.last_seen_at < p_now - interval '7 days';
  return v_quarantined + v_events + v_commands + v_dispatches;
end
$$;

comment on function fleet.prune(timestamptz) is
  'Removes quarantined heartbeats, events and commands that are past their time; returns how many. Run by fleet.nightly().';
--! EndIncluded functions/prune.sql
--! Included grants.sql
-- Who may do what. Everything is revoked first, so that this file is the whole truth.
revoke all on all tables in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on all routines in schema fleet from public, fleet_server, fleet_archiver, fleet_reader, fleet_dba;
revoke all on schema fleet, fleet_detached from public;

grant usage on schema fleet to fleet_server, fleet_archiver, fleet_reader, fleet_dba;
grant usage on schema fleet_detached to fleet_reader, fleet_dba;
-- CREATE is what owning a table there takes.
grant usage, create on schema fleet_detached to fleet_archiver;

-- Heartbeats are never changed, not even by the owner: rows leave with their partition, once it is proven.
revoke update, delete, truncate on fleet.device_heartbeats from fleet_owner;

grant execute on function
  fleet.ingest(json, timestamptz),
  fleet.authenticate(bytea),
  fleet.known_devices(bigint[]),
  fleet.take_commands(bigint),
  fleet.ack_command(bigint, bigint),
  fleet.metric_values()
to fleet_server;

grant execute on function
  fleet.create_device(text, text),
  fleet.enroll_device(text, text),
  fleet.revoke_device(bigint),
  fleet.send_command(bigint, text, jsonb),
  fleet.reconcile(interval, integer),
  fleet.nightly_plan(interval, timestamptz),
  fleet.run_steps(bigint),
  fleet.check(),
  -- What the procedures call with the rights of who calls them.
  fleet.begin_run(text),
  fleet.end_run(bigint, text, integer),
  fleet.do_step(text, text, timestamptz),
  fleet.retention_plan(interval, timestamptz),
  fleet.record_event(text, text, bigint, bigint, text, boolean, bigint),
  fleet.count_up(text, numeric),
  fleet.elapsed_ms(timestamptz)
to fleet_server, fleet_dba;
grant execute on procedure
  fleet.maintain(bigint, timestamptz),
  fleet.nightly(bigint, interval, timestamptz),
  fleet.run_step(bigint, text, text, timestamptz, integer)
to fleet_server, fleet_dba;

grant execute on function
  fleet.set_retention(interval),
  fleet.set_premake(integer),
  fleet.create_partitions(date, date),
  fleet.sync_partitions(),
  fleet.archive_partition(text),
  fleet.retry_archive(text),
  fleet.hold_partition(text, text),
  fleet.release_partition(text),
  fleet.create_gateway_token(text),
  fleet.revoke_gateway(text),
  fleet.backfill_last_status(integer),
  fleet.replay_quarantine(timestamptz, timestamptz, bigint),
  fleet.schedule_jobs(),
  fleet.ingest(json, timestamptz),
  fleet.metric_values()
to fleet_dba;

grant execute on function
  fleet.drop_partition(text),
  fleet.request_restore(date, date),
  fleet.wake_archiver(text),
  fleet.content_checksum(regclass),
  fleet.archive_columns(regclass)
to fleet_dba, fleet_archiver;

grant execute on function
  fleet.claim_partition(text, interval),
  fleet.renew_lease(text, text, interval),
  fleet.release_lease(text, text),
  fleet.record_frozen(text, text),
  fleet.record_export(text, text, bigint, numeric, timestamptz, timestamptz),
  fleet.record_upload(text, text, text, text, bigint),
  fleet.record_proof(text, text, text, numeric, bigint, timestamptz, timestamptz),
  fleet.record_failure(text, text, text),
  fleet.archiver_heartbeat(text, text),
  fleet.claim_restore(text, interval),
  fleet.renew_restore_lease(text, text, interval),
  fleet.begin_restore(text, text),
  fleet.finish_restore(text, text),
  fleet.release_restore(text, text),
  fleet.fail_restore(text, text, text)
to fleet_archiver;

grant select on
  fleet.device_status, fleet.devices_offline, fleet.unity_down, fleet.fleet_summary
to fleet_server, fleet_reader, fleet_dba;

grant select on
  fleet.partition_health, fleet.archives, fleet.data_coverage, fleet.storage_growth, fleet.job_health
to fleet_reader, fleet_dba;
-- What the view job_health calls.
grant execute on function fleet.job_history() to fleet_reader, fleet_dba;
grant select on fleet.archives, fleet.partition_health to fleet_archiver;

grant select on
  fleet.device_heartbeats, fleet.device_last_status, fleet.hb_partitions, fleet.events, fleet.counters, fleet.settings,
  fleet.device_commands, fleet.command_dispatch_log
to fleet_reader, fleet_dba;
grant select on fleet.hb_partitions, fleet.restore_requests, fleet.restore_items to fleet_archiver, fleet_dba;
-- For queries over the archive and the online days together.
grant select on fleet.device_heartbeats to fleet_archiver;
grant select on fleet.settings_audit, fleet.heartbeat_quarantine, fleet.archivers to fleet_dba;
grant select (device_id, alias, cohort, heartbeat_interval, enrolled_at, revoked_at) on fleet.devices to fleet_reader, fleet_dba;
grant update (cohort, heartbeat_interval) on fleet.devices to fleet_dba;
grant update (
  max_late, max_future, offline_after, archive_grace, archive_max_attempts, store_ip, quarantine_keep, quarantine_per_device,
  events_keep, command_expires_after, commands_keep
) on fleet.settings to fleet_dba;
--! EndIncluded grants.sql
