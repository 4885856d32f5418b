create or replace view fleet.open_sessions as
select s.session_id, s.actor, s.login, f.scopes, f.cohorts, s.address, s.user_agent, s.started_at, s.last_seen_at, s.ends_at
from fleet.sessions s
cross join lateral fleet.find_session(s.session_hash) f
where f.is_open
order by s.last_seen_at desc;

comment on view fleet.open_sessions is
  'Who is logged in to the ops page: how, from where, since when, and what the session may do. '
  'Example: select actor, login, last_seen_at from fleet.open_sessions;';
