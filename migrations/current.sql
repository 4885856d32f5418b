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

-- from main: fleet.audit() comes from main. This is only here so that the tests of this branch run; it goes when main has it.
create or replace function fleet.audit(
  p_action text, p_target text, p_before jsonb default null, p_after jsonb default null
) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select fleet.record_event(p_action, p_detail => format('%s: %s, was %s; by %s', p_target, p_after, p_before, session_user));
$$;
comment on function fleet.audit(text, text, jsonb, jsonb) is 'Comes from main.';

-- Functions that policies and views call
--!include access/seen_cohorts.sql
--!include access/grant_heartbeat_columns.sql

-- Functions, policies, views
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
