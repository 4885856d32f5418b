create or replace function fleet.current_actor(out actor text, out how text, out request_id text, out address text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    case when a.is_server then a.actor else session_user::text end,
    case
      when a.is_server then a.how
      -- Any login can take this name, so it counts only for the one whose jobs pg_cron runs.
      when current_setting('application_name') similar to '(pg_cron|nexmdm tick)%' and pg_has_role(session_user, 'fleet_owner', 'member') then 'job'
      when (select b.backend_type from pg_stat_get_activity(pg_backend_pid()) b) like 'pg_cron%' then 'job'
      else 'sql'
    end,
    case when a.is_server then nullif(current_setting('fleet.request_id', true), '') end,
    case when a.is_server then nullif(current_setting('fleet.address', true), '') else host(inet_client_addr()) end
  from (
    select s.actor, s.how,
      -- Any login can set these, so they count only in the server's sessions.
      s.actor is not null and s.how in ('key', 'session') and pg_has_role(session_user, 'fleet_server', 'member') as is_server
    from (select nullif(current_setting('fleet.actor', true), '') as actor, current_setting('fleet.how', true) as how) s
  ) a;
$$;

comment on function fleet.current_actor() is
  'Who acts now: whom the server named with fleet.act(), or else the login of Postgres. Example: select * from '
  'fleet.current_actor();';
