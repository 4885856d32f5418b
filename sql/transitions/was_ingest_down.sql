create or replace function fleet.was_ingest_down(p_heard_at timestamptz) returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select coalesce(
    case
      -- Nobody has looked since Postgres was down.
      when fleet.postgres_started_at() > w.looked_at then
        p_heard_at < fleet.postgres_started_at() and p_heard_at - w.newest_received_at >= -interval '105 seconds'
      else p_heard_at <= coalesce(w.gap_to, 'infinity') and p_heard_at - w.gap_from >= -interval '105 seconds'
    end,
    false
  )
  from fleet.silence_watch w
  where isfinite(w.looked_at);
$$;

comment on function fleet.was_ingest_down(timestamptz) is
  'Whether a device that was last heard from at this time fell silent because heartbeats could not be stored: Postgres was down, '
  'or fleet.watch_silence() saw that nothing came in from anybody.';
