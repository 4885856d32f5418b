-- Enter migration here
-- Logout ends a session of the ops page on every server.
create table if not exists fleet.ended_sessions (
  session_hash bytea not null,
  ends_at timestamptz not null,
  constraint ended_sessions_pkey primary key (session_hash),
  constraint ended_sessions_hash_is_sha256 check (length(session_hash) = 32)
);
comment on table fleet.ended_sessions is
  'Sessions of the ops page that were ended by a logout before their time. Kept until they would have ended by themselves.';
comment on column fleet.ended_sessions.session_hash is 'SHA-256 of what the cookie says, without its signature: with it nobody can log in.';
comment on column fleet.ended_sessions.ends_at is 'When the cookie ends by itself; after that the row is removed by the next logout.';

--!include functions/end_session.sql
--!include functions/is_session_ended.sql
--!include functions/end_overdue_readers.sql
--!include functions/take_index_lock.sql
--!include procedures/mark_silent.sql
--!include grants.sql
