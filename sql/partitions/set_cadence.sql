create or replace function fleet.set_cadence(p_cadence text, p_now timestamptz default now()) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_settings fleet.settings;
  v_end date;
  v_first date;
begin
  perform fleet.not_in_future(p_now);
  if p_cadence is null or p_cadence not in ('daily', 'monthly') then
    raise exception using
      errcode = 'FL422',
      message = format('cadence %s is neither daily nor monthly', coalesce(p_cadence, 'null')),
      hint = 'Example: select fleet.set_cadence(''daily''); see first: select * from fleet.recommend_cadence();';
  end if;
  select * into strict v_settings from fleet.settings for update;
  if v_settings.cadence = p_cadence then
    return format('the cadence is already %s', p_cadence);
  end if;

  -- The new width starts where the existing partitions end; they are not changed.
  perform fleet.sync_partitions();
  select greatest(max(a.range_end)::date, p_now::date) into v_end from fleet.attached_partitions() a;
  v_first := v_end;
  if p_cadence = 'monthly' and v_end <> date_trunc('month', v_end) then
    v_first := (date_trunc('month', v_end) + interval '1 month')::date;
    perform fleet.add_partitions(v_end, v_first - 1);
  end if;

  update fleet.settings set cadence = p_cadence;
  perform fleet.configure_partman();
  -- The first partition of the new width, from which pg_partman continues.
  perform fleet.add_partitions(v_first, greatest(v_first, p_now::date + v_settings.premake_days));
  return format(
    'cadence %s (was %s) from %s on; partitions before that stay as they are', p_cadence, v_settings.cadence, v_first
  );
end
$$;

comment on function fleet.set_cadence(text, timestamptz) is
  'Sets whether partitions hold a day or a month, from the first day that has no partition yet (monthly: from the first whole '
  'month). Example: select fleet.set_cadence(''monthly'');';
