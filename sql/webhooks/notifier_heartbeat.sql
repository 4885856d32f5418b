create or replace function fleet.notifier_heartbeat(p_worker text, p_version text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into fleet.notifiers as n (worker, version)
  values (p_worker, p_version)
  on conflict (worker) do update
    set last_seen_at = now(), version = excluded.version;
$$;

comment on function fleet.notifier_heartbeat(text, text) is 'Records that a notifier is alive, and its version.';
