create or replace function fleet.silence_metrics()
returns table (metric text, labels jsonb, value double precision)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    select v.metric, s.labels, v.value
    from (
      -- OFFSET 0 has the labels of a cohort made once, and not for each metric.
      select l.*, jsonb_build_object('cohort', l.cohort) as labels from fleet.fleet_silence l offset 0
    ) s
    cross join lateral (
      values
        ('cohort_devices', s.devices::double precision),
        ('cohort_active_devices', s.active),
        ('cohort_gone_quiet_devices', s.gone_quiet),
        ('cohort_gone_quiet_ratio', s.share),
        ('cohort_usual_quiet_ratio', s.usual_share),
        ('cohort_silence_alarm', s.is_alarming::integer),
        ('cohort_silence_muted', s.is_muted::integer)
    ) as v (metric, value)
    where v.value is not null;
end
$$;

comment on function fleet.silence_metrics() is
  'fleet.fleet_silence for /metrics. Separate from fleet.metric_values(), because it reads every device of a small fleet; a '
  'server calls it once a minute.';
