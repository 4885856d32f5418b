create or replace function fleet.set_cohort_interval(p_cohort text, p_interval interval) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old interval;
  v_last interval;
begin
  if p_cohort is null or btrim(p_cohort) = '' or length(p_cohort) > 100 then
    raise exception using
      errcode = 'FL422',
      message = 'cohort must have 1 to 100 characters',
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
  end if;
  if p_interval < interval '1 second' or p_interval > interval '1 day' then
    raise exception using
      errcode = 'FL422',
      message = format('interval %s is not between 1 second and 1 day', p_interval),
      hint = 'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes''); With null the cohort is not slowed.';
  end if;
  -- Otherwise two calls at once would both see the same old value. Readers do not wait.
  lock table fleet.cohorts in share row exclusive mode;
  select c.min_interval, greatest(c.min_interval, case when now() - c.changed_at < 2 * c.last_interval then c.last_interval end)
  into v_old, v_last
  from fleet.cohorts c
  where c.cohort = p_cohort;
  if v_old is distinct from p_interval then
    insert into fleet.cohorts as c (cohort, min_interval, last_interval, changed_at)
    values (p_cohort, p_interval, v_last, now())
    on conflict (cohort) do update
      set min_interval = excluded.min_interval,
        last_interval = excluded.last_interval,
        changed_at = excluded.changed_at;
    perform fleet.audit('cohort_interval.changed', 'cohort_interval:' || p_cohort, to_jsonb(v_old::text), to_jsonb(p_interval::text));
  end if;
  return format(
    'cohort %s: %s (was %s); it has %s devices', p_cohort,
    coalesce('at least ' || p_interval || ' between heartbeats', 'not slowed'),
    coalesce(v_old::text, 'not slowed'),
    (select count(*) from fleet.devices where cohort = p_cohort and revoked_at is null)
  );
end
$$;

comment on function fleet.set_cohort_interval(text, interval) is
  'Slows a cohort: none of its devices is asked to send more often than this. With null, each device follows its own interval '
  'again. A device learns of the change from its next answer. '
  'Example: select fleet.set_cohort_interval(''lobby'', ''5 minutes'');';
