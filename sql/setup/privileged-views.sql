-- Functions for fleet.check() that show what only a superuser may see. Run at setup, after guard.sql, by the administrator. If
-- the administrator is not a superuser, they return null or no rows, and fleet.check() says that it cannot know.
-- Names resolve in pg_catalog, no matter who runs this, so that no object of an ordinary role is used instead.
set search_path = pg_catalog, pg_temp;

create or replace function fleet_guard.memory_bytes() returns bigint
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select min(m.bytes)
    from (
      select substring(pg_read_file('/proc/meminfo', 0, 1000, true) from 'MemTotal: +(\d+) kB')::bigint * 1024 as bytes
      union all
      -- The memory limit of a container, by cgroups version 2 or 1.
      select substring(pg_read_file(f.name, 0, 100, true) from '^\d{1,18}')::bigint
      from unnest(array['/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes']) as f (name)
    ) m
  );
exception when others then
  return null;
end
$$;
comment on function fleet_guard.memory_bytes() is
  'The memory of the machine or container in which Postgres runs, in bytes; null if unknown (not on Linux, or set up without a '
  'superuser).';

create or replace function fleet_guard.lost_jobs() returns table (jobid bigint, jobname text, username text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_extension where extname = 'pg_cron') then
    return;
  end if;
  -- cron.job shows each role only its own jobs, and the role of these jobs no longer exists.
  return query execute $jobs$
    select j.jobid, j.jobname::text, j.username::text
    from cron.job j
    where not exists (select from pg_roles r where r.rolname = j.username)
    order by j.jobid
  $jobs$;
end
$$;
comment on function fleet_guard.lost_jobs() is 'The jobs of pg_cron whose role was dropped.';

revoke all on function fleet_guard.memory_bytes(), fleet_guard.lost_jobs() from public;
grant execute on function fleet_guard.memory_bytes(), fleet_guard.lost_jobs() to fleet_owner;
