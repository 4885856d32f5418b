-- Enter migration here

-- Who may call what, who is logged in, and who did what.

create table if not exists fleet.api_credentials (
  key_id bigint generated always as identity,
  key_name text not null,
  token_hash bytea not null,
  previous_hash bytea,
  previous_until timestamptz,
  scopes text[] not null,
  cohorts text[],
  created_at timestamptz not null default now(),
  created_by text not null,
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz,
  last_address text,
  constraint api_credentials_pkey primary key (key_id),
  constraint api_credentials_name_unique unique (key_name),
  constraint api_credentials_token_hash_unique unique (token_hash),
  constraint api_credentials_previous_hash_unique unique (previous_hash),
  constraint api_credentials_scopes_known
    check (scopes <@ array['read', 'metrics', 'enroll', 'command', 'operate'] and cardinality(scopes) > 0),
  constraint api_credentials_bound_scopes
    check (cohorts is null or cardinality(cohorts) > 0 and not scopes && array['metrics', 'operate'])
);
comment on table fleet.api_credentials is 'API keys, as hashes. Read it with fleet.api_keys.';
comment on column fleet.api_credentials.key_id is 'The number of the key.';
comment on column fleet.api_credentials.key_name is 'The name of the key, as in fleet.audit_log and in the metrics. Unique, revoked keys included.';
comment on column fleet.api_credentials.token_hash is 'SHA-256 of the key. The key itself is not stored.';
comment on column fleet.api_credentials.previous_hash is 'SHA-256 of the key before the last rotation.';
comment on column fleet.api_credentials.previous_until is 'Until when the key from before the last rotation is valid, too.';
comment on column fleet.api_credentials.scopes is 'What the key may do: read, metrics, enroll, command, operate.';
comment on column fleet.api_credentials.cohorts is 'The cohorts whose devices the key knows; null: all.';
comment on column fleet.api_credentials.created_at is 'When the key was created.';
comment on column fleet.api_credentials.created_by is 'Who created it, as in fleet.audit_log.actor.';
comment on column fleet.api_credentials.expires_at is 'When the key stops by itself; null: never.';
comment on column fleet.api_credentials.revoked_at is 'When the key was revoked; null while it was not.';
comment on column fleet.api_credentials.last_used_at is 'When the key was last used, to the minute.';
comment on column fleet.api_credentials.last_address is 'The address from which it was last used.';

create table if not exists fleet.sessions (
  session_id bigint generated always as identity,
  session_hash bytea not null,
  actor text not null,
  login text not null,
  key_id bigint,
  scopes text[] not null,
  cohorts text[],
  address text,
  user_agent text,
  started_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  ends_at timestamptz not null,
  ended_at timestamptz,
  constraint sessions_pkey primary key (session_id),
  constraint sessions_hash_unique unique (session_hash),
  constraint sessions_hash_is_sha256 check (length(session_hash) = 32),
  constraint sessions_login_known check (login in ('admin_key', 'api_key', 'oidc')),
  constraint sessions_key_id_fkey foreign key (key_id) references fleet.api_credentials (key_id) on delete cascade
);
comment on table fleet.sessions is 'Logins to the ops page. Read those that are open with fleet.open_sessions.';
comment on column fleet.sessions.session_id is 'The number of the session.';
comment on column fleet.sessions.session_hash is
  'SHA-256 of the text in the cookie (of ADMIN_KEY sessions without its signature), so that nobody can log in with it.';
comment on column fleet.sessions.actor is 'Who logged in: a person, the name of an API key, or ADMIN_KEY.';
comment on column fleet.sessions.login is 'How: admin_key, api_key or oidc (OpenID Connect).';
comment on column fleet.sessions.key_id is 'The API key with which the session was opened. It ends with the key.';
comment on column fleet.sessions.scopes is 'What the session may do, as decided at login. With an API key, the scopes of the key count.';
comment on column fleet.sessions.cohorts is 'The cohorts that the session knows; null: all.';
comment on column fleet.sessions.address is 'The address from which somebody logged in.';
comment on column fleet.sessions.user_agent is 'The browser, as it describes itself.';
comment on column fleet.sessions.started_at is 'When somebody logged in.';
comment on column fleet.sessions.last_seen_at is 'When the session was last used, to the minute.';
comment on column fleet.sessions.ends_at is 'When the session ends by itself.';
comment on column fleet.sessions.ended_at is 'When it was ended by a logout or by somebody; null while it was not.';
create index if not exists sessions_ends_at_idx on fleet.sessions (ends_at);
comment on index fleet.sessions_ends_at_idx is 'For pruning by age.';
create index if not exists sessions_key_id_idx on fleet.sessions (key_id);
comment on index fleet.sessions_key_id_idx is 'The sessions of an API key.';
do $$
begin
  if to_regclass('fleet.ended_sessions') is not null then
    -- Sessions that were ended stay ended.
    insert into fleet.sessions (session_hash, actor, login, scopes, ends_at, ended_at)
    select e.session_hash, 'ADMIN_KEY', 'admin_key', array['read', 'metrics', 'enroll', 'command', 'operate'], e.ends_at, now()
    from fleet.ended_sessions e
    on conflict do nothing;
    drop table fleet.ended_sessions;
  end if;
end
$$;
drop function if exists fleet.is_session_ended(bytea);

create table if not exists fleet.audit_log (
  audit_id bigint generated always as identity,
  at timestamptz not null default now(),
  actor text not null,
  how text not null,
  action text not null,
  target text,
  before jsonb,
  after jsonb,
  request_id text,
  address text,
  constraint audit_log_pkey primary key (audit_id),
  constraint audit_log_how_known check (how in ('key', 'session', 'sql', 'job'))
);
comment on table fleet.audit_log is
  'Who did what. Each row was written in the transaction of its deed. Rows can only be added; fleet.prune() deletes those that '
  'are older than settings.audit_keep.';
comment on column fleet.audit_log.audit_id is 'The order of the rows.';
comment on column fleet.audit_log.at is 'When it was done.';
comment on column fleet.audit_log.actor is 'Who did it: the name of an API key, a person, ADMIN_KEY, or a login of Postgres.';
comment on column fleet.audit_log.how is
  'key: a call to the HTTP API. session: the ops page. sql: a login of Postgres. job: pg_cron.';
comment on column fleet.audit_log.action is 'What was done, such as device.revoked or settings.changed.';
comment on column fleet.audit_log.target is 'What it was done to, such as device:42 or setting:retention.';
comment on column fleet.audit_log.before is 'What was before, where something was changed.';
comment on column fleet.audit_log.after is 'What is now. Keys, tokens and passwords are never in it.';
comment on column fleet.audit_log.request_id is 'The X-Request-Id of the HTTP request.';
comment on column fleet.audit_log.address is 'The address of the client.';
create index if not exists audit_log_at_idx on fleet.audit_log (at);
comment on index fleet.audit_log_at_idx is 'For pruning by age.';
create index if not exists audit_log_target_idx on fleet.audit_log (target, at);
comment on index fleet.audit_log_target_idx is 'What happened to one thing.';
create index if not exists audit_log_actor_idx on fleet.audit_log (actor, at);
comment on index fleet.audit_log_actor_idx is 'What somebody did.';
create index if not exists audit_log_action_idx on fleet.audit_log (action, at);
comment on index fleet.audit_log_action_idx is 'When something was done, and by whom.';

alter table fleet.settings
  add column if not exists audit_keep interval not null default interval '400 days',
  drop constraint if exists settings_audit_keep_positive,
  add constraint settings_audit_keep_positive check (audit_keep >= interval '1 day');
comment on column fleet.settings.audit_keep is 'How long rows of fleet.audit_log are kept online.';
do $$
begin
  if (select c.relkind from pg_class c where c.oid = to_regclass('fleet.settings_audit')) = 'r' then
    insert into fleet.audit_log (at, actor, how, action, target, before, after)
    select a.changed_at, a.changed_by, 'sql',
      case
        when a.setting like 'webhook:%' then 'webhook.changed'
        when a.setting like 'cohort_interval:%' then 'cohort_interval.changed'
        else 'setting.changed'
      end,
      case when a.setting ~ '^(webhook|cohort_interval):' then a.setting else 'setting:' || a.setting end,
      to_jsonb(a.old_value), to_jsonb(a.new_value)
    from fleet.settings_audit a
    order by a.audit_id;
    drop table fleet.settings_audit;
  end if;
end
$$;
alter table fleet.settings add column if not exists audit_archive boolean not null default false;
comment on column fleet.settings.audit_archive is
  'Whether each past month of fleet.audit_log goes to the archive. Then no row is deleted that is not there.';
create table if not exists fleet.audit_archives (
  month date,
  url text,
  sha256 text,
  bytes bigint,
  rows bigint,
  rows_sha256 text,
  archived_at timestamptz,
  wanted integer not null default 1,
  done integer not null default 0,
  pruned_at timestamptz,
  attempts integer not null default 0,
  next_attempt_at timestamptz,
  last_error text,
  lease_owner text,
  lease_until timestamptz,
  constraint audit_archives_pkey primary key (month),
  constraint audit_archives_whole_months check (extract(day from month) = 1),
  constraint audit_archives_proven
    check (done = 0 or (url is not null and sha256 is not null and rows is not null and archived_at is not null))
);
comment on table fleet.audit_archives is 'The months of fleet.audit_log in the archive, each in one Parquet file.';
comment on column fleet.audit_archives.month is 'The first day of the month, in UTC.';
comment on column fleet.audit_archives.url is 'Where the file is.';
comment on column fleet.audit_archives.sha256 is 'SHA-256 of the file.';
comment on column fleet.audit_archives.bytes is 'Its size.';
comment on column fleet.audit_archives.rows is 'How many rows it has.';
comment on column fleet.audit_archives.rows_sha256 is
  'SHA-256 of its rows as CSV, by Postgres and, from the file that was read back, by DuckDB.';
comment on column fleet.audit_archives.archived_at is 'When it was read back and recorded.';
comment on column fleet.audit_archives.wanted is 'The revision that is to be archived. It grows when rows of the month change.';
comment on column fleet.audit_archives.done is 'The revision that is archived; 0: none.';
comment on column fleet.audit_archives.pruned_at is 'When its rows were deleted online; null while they are there.';
comment on column fleet.audit_archives.attempts is 'How often in a row archiving it has failed.';
comment on column fleet.audit_archives.next_attempt_at is 'When it is tried again.';
comment on column fleet.audit_archives.last_error is 'Why it failed.';
comment on column fleet.audit_archives.lease_owner is 'The archiver that works on it.';
comment on column fleet.audit_archives.lease_until is 'When another archiver may take it.';
drop function if exists fleet.end_session(bytea, timestamptz);
drop function if exists fleet.audit_webhook(text, text, text);
drop function if exists fleet.transitions_of(bigint, bigint, integer);

-- Logins of Postgres that see only the devices of their cohorts.

create table if not exists fleet.readers (
  reader text not null,
  cohorts text[] not null,
  created_at timestamptz not null default now(),
  created_by text not null default session_user,
  constraint readers_pkey primary key (reader),
  constraint readers_cohorts_named check (
    cardinality(cohorts) > 0 and array_position(cohorts, null) is null and not '(all)' = any (cohorts)
  )
);
comment on table fleet.readers is
  'The logins that see only the devices of their cohorts. Change it with fleet.create_reader() and the functions like it; read it '
  'with fleet.reader_logins.';
comment on column fleet.readers.reader is 'The name of the login, a role of the cluster.';
comment on column fleet.readers.cohorts is 'fleet.devices.cohort of the devices that it sees. They need not exist yet.';
comment on column fleet.readers.created_at is 'When it was made.';
comment on column fleet.readers.created_by is 'The login that made it.';

-- Functions, procedures, views

--!include access/may_reach.sql
--!include access/current_actor.sql
--!include access/is_scheduled_run.sql
--!include access/audit.sql
--!include access/keep_audit_log.sql
--!include access/audit_months_due.sql
--!include access/claim_audit_month.sql
--!include access/renew_audit_lease.sql
--!include access/record_audit_archive.sql
--!include access/fail_audit_archive.sql
--!include access/prune_audit_log.sql
--!include archive/wake_archiver.sql
--!include checks/check_archive.sql
--!include access/audit_log.trigger.sql
--!include access/settings_audit.view.sql
--!include access/find_api_key.sql
--!include access/get_api_key.sql
--!include access/create_api_key.sql
--!include access/revoke_api_key.sql
--!include access/rotate_api_key.sql
--!include access/authenticate_key.sql
--!include access/api_keys.view.sql
--!include access/find_session.sql
--!include access/act.sql
--!include access/open_session.sql
--!include access/see_session.sql
--!include access/end_session.sql
--!include access/close_session.sql
--!include access/open_sessions.view.sql
--!include devices/check_cohort.sql
--!include devices/get_device.sql
--!include devices/create_device.sql
--!include devices/revoke_device.sql
--!include devices/renew_token.sql
--!include devices/move_device.sql
--!include devices/rename_device.sql
--!include devices/send_command.sql
--!include devices/set_cohort_interval.sql
--!include status/fleet_summary_of.sql
--!include status/list_devices_of.sql
--!include transitions/transitions_of_cohorts.sql
--!include transitions/transitions_of.sql
--!include webhooks/audit_webhook.sql
--!include webhooks/describe_webhook.sql
--!include partitions/settle_table.sql
--!include partitions/settle_partition.sql
--!include partitions/unsettle_table.sql
--!include partitions/unsettle_partition.sql
--!include partitions/add_partitions.sql
--!include partitions/create_partitions.sql
--!include partitions/premake.sql
--!include partitions/set_cadence.sql
--!include partitions/hold_partition.sql
--!include partitions/release_partition.sql
--!include partitions/drop_retired.sql
--!include availability/roll_up_day.sql
--!include availability/roll_up.sql
--!include availability/finish_rollups.sql
--!include ingest/ingest.sql
--!include ingest/replay_heartbeats.sql
--!include ingest/replay_quarantine.sql
--!include archive/archive_partition.sql
--!include archive/retry_archive.sql
--!include archive/accept_archive.sql
--!include archive/forget_archive.sql
--!include archive/request_restore.sql
--!include erase/erase_device.sql
--!include erase/retry_erasure.sql
--!include status/backfill_last_status.sql
--!include status/reconcile.sql
--!include devices/create_gateway_token.sql
--!include devices/revoke_gateway.sql
--!include devices/audit_devices.sql
--!include devices/devices.trigger.sql
--!include import/prepare_partitions.sql
--!include import/move_blocks.sql
--!include import/begin_import.sql
--!include import/begin_verification.sql
--!include import/begin_abandoning.sql
--!include import/confirm_import.sql
--!include import/forget_import.sql
--!include import/audit_import_devices.sql
--!include import/import_devices.trigger.sql
--!include webhooks/create_webhook.sql
--!include webhooks/remove_webhook.sql
--!include webhooks/rotate_webhook_secret.sql
--!include webhooks/pause_webhook.sql
--!include webhooks/resume_webhook.sql
--!include webhooks/test_webhook.sql
--!include webhooks/replay_webhook.sql
--!include webhooks/retry_deliveries.sql
--!include webhooks/dismiss_deliveries.sql
--!include jobs/do_step.sql
--!include jobs/begin_run.sql
--!include jobs/audit_unlock.sql
--!include jobs/force_unlock.sql
--!include jobs/schedule_jobs.sql
--!include jobs/audit_settings.sql
--!include jobs/settings.trigger.sql
--!include jobs/prune.sql

-- Who acts through the server is named there, too.
alter table fleet.webhooks alter created_by set default (fleet.current_actor()).actor;
alter table fleet.restore_requests alter requested_by set default (fleet.current_actor()).actor;
alter table fleet.erasures alter requested_by set default (fleet.current_actor()).actor;
alter table fleet.imports alter started_by set default (fleet.current_actor()).actor;

-- Logins that see only their cohorts: the functions that policies and views call, and then the policies and views
--!include access/seen_cohorts.sql
--!include access/grant_heartbeat_columns.sql
--!include access/readers.policies.sql
--!include archive/note_columns.sql
--!include status/device_state.view.sql
--!include status/device_status.view.sql
--!include status/devices_offline.view.sql
--!include status/unity_down.view.sql
--!include status/fleet_summary.view.sql
--!include silence/silence_at.sql
--!include transitions/recent_changes.view.sql
--!include availability/device_availability.view.sql
--!include availability/missed_beats.view.sql
--!include ingest/unreadable_fields.view.sql
--!include access/hmac_pad.sql
--!include access/scram_verifier.sql
--!include access/reader_cohorts.sql
--!include access/no_such_reader.sql
--!include access/require_reader_logins.sql
--!include access/create_reader.sql
--!include access/set_reader_cohorts.sql
--!include access/renew_reader_password.sql
--!include access/drop_reader.sql
--!include access/reader_logins.view.sql
--!include access/check_readers.sql
--!include checks/check.sql
--!include setup/grants.sql
