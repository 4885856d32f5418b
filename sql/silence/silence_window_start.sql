create or replace function fleet.silence_window_start(p_now timestamptz) returns timestamptz
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  -- Devices that fell silent while ingest was down have not been counted yet, so the window includes the gap once more.
  select least(case when p_now < w.gap_to + 2 * s.silence_window then w.gap_from end, p_now - s.silence_window)
  from fleet.settings s
  cross join fleet.silence_watch w;
$$;

comment on function fleet.silence_window_start(timestamptz) is
  'When the window begins in which fleet.fleet_silence counts devices at this time: settings.silence_window ago, or earlier '
  'after a gap in ingest. Example: select fleet.silence_window_start(now());';
