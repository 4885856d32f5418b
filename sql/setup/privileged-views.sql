-- What only a superuser may see, for fleet.check(). Run at setup, after guard.sql, by the administrator; made by one who is
-- no superuser, these functions answer null or nothing, and fleet.check() says that it cannot know.
-- Names resolve in pg_catalog, no matter who runs this, so nothing that an ordinary role made is called instead.
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
      -- What a container may use of it, cgroups version 2 and 1.
      select substring(pg_read_file(f.name, 0, 100, true) from '^\d{1,18}')::bigint
      from unnest(array['/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes']) as f (name)
    ) m
  );
exception when others then
  return null;
end
$$;
comment on function fleet_guard.memory_bytes() is
  'The memory of the machine or container that Postgres runs in; null where it cannot be known (no Linux, no superuser at setup).';

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
  -- cron.job shows each role its own jobs only, and these have none left.
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
