create or replace function fleet.archiver_heartbeat(p_worker text, p_version text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.archivers as a (worker, version)
  values (p_worker, p_version)
  on conflict (worker) do update
    set last_seen_at = now(), version = excluded.version;
$$;

comment on function fleet.archiver_heartbeat(text, text) is 'Records that an archiver is alive, and its version.';
