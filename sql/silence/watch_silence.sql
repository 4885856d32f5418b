create or replace function fleet.watch_silence(p_now timestamptz default now()) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  c_every constant interval := interval '10 minutes';
  c_keep constant interval := interval '8 days';
  c_around constant interval := interval '90 minutes';
  v_watch fleet.silence_watch;
  v_settings fleet.settings;
  v_newest timestamptz;
  v_is_remembered boolean;
begin
  select * into strict v_settings from fleet.settings;
  select * into strict v_watch from fleet.silence_watch for update;
  v_newest := fleet.newest_received_at(p_now);

  -- While the devices of a gap are still to be counted, a further gap extends it rather than replacing it.
  v_is_remembered := v_watch.gap_to is null and v_watch.gap_from is not null
    or p_now < v_watch.gap_to + 2 * v_settings.silence_window;
  if v_watch.looked_at > p_now + v_settings.ingest_gap then
    -- The clock ran ahead, so nothing that was seen then counts.
    v_watch.gap_from := coalesce(v_newest, p_now);
    v_watch.gap_to := p_now;
    v_watch.sampled_at := '-infinity';
    delete from fleet.silence_samples s
    where s.sampled_at > p_now;
  elsif fleet.is_ingest_down(v_newest, p_now) then
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else v_newest end;
    v_watch.gap_to := null;
  elsif v_watch.gap_from is not null and v_watch.gap_to is null then
    v_watch.gap_to := p_now;
  elsif v_watch.looked_at < p_now - v_settings.ingest_gap or v_watch.looked_at < fleet.postgres_started_at() then
    -- Nothing is known about ingest since the last call.
    v_watch.gap_from := case when v_is_remembered then v_watch.gap_from else coalesce(v_watch.newest_received_at, p_now) end;
    v_watch.gap_to := p_now;
  end if;
  update fleet.silence_watch
  set looked_at = p_now, newest_received_at = v_newest, gap_from = v_watch.gap_from, gap_to = v_watch.gap_to;

  if date_bin(c_every, p_now, '2000-01-01Z') <= v_watch.sampled_at then
    return;
  end if;
  -- A sample taken while the alarm is muted, or over a longer window, must not count as usual.
  insert into fleet.silence_samples (cohort, sampled_at, active, gone_quiet)
  select a.cohort, p_now, a.active, a.gone_quiet
  from fleet.silence_at(p_now) a
  where a.active > 0 and coalesce(a.muted_reason in ('few_devices', 'few_samples'), true)
    and a.window_start = a.counted_at - v_settings.silence_window
  on conflict do nothing;
  delete from fleet.silence_samples s
  where s.sampled_at < p_now - c_keep;

  delete from fleet.silence_usual;
  insert into fleet.silence_usual (cohort, usual_share, samples, days, computed_at)
  select a.cohort, case when k.days >= 3 then k.peaks[2] else a.highest end, a.samples, coalesce(k.days, 0), p_now
  from (
    select s.cohort, count(*) as samples,
      -- What is happening now does not count as usual.
      max(s.gone_quiet / s.active::double precision)
        filter (where s.sampled_at < p_now - greatest(c_around, 2 * v_settings.silence_window)) as highest
    from fleet.silence_samples s
    group by s.cohort
  ) a
  left join (
    select p.cohort, count(*) as days, array_agg(p.peak order by p.peak desc) as peaks
    from (
      select s.cohort, d.days_ago, max(s.gone_quiet / s.active::double precision) as peak
      from generate_series(1, 7) as d (days_ago)
      join fleet.silence_samples s
        on s.sampled_at between p_now - d.days_ago * interval '1 day' - c_around
          and p_now - d.days_ago * interval '1 day' + c_around
      group by s.cohort, d.days_ago
    ) p
    group by p.cohort
  ) k using (cohort);

  update fleet.silence_watch
  set sampled_at = p_now;
end
$$;

comment on function fleet.watch_silence(timestamptz) is
  'Checks whether heartbeats arrive, and every 10 minutes takes a sample of fleet.fleet_silence, from which it computes what is '
  'usual. Called each minute by fleet.mark_silent(). Example: select fleet.watch_silence();';
