create or replace function fleet.backfill_last_status(p_days integer default 7, out updated bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_days is null or p_days < 1 then
    raise exception using
      errcode = 'FL422',
      message = format('cannot backfill %s days', coalesce(p_days::text, 'null')),
      hint = 'Give at least 1 day. Example: select fleet.backfill_last_status(7);';
  end if;
  select h.updated into updated from fleet.heal_last_status(make_interval(days => p_days), 2147483647) h;
  if updated > 0 then
    perform fleet.audit(
      'last_status.backfilled', 'last_status:all', p_after => jsonb_build_object('days', p_days, 'updated', updated)
    );
  end if;
  perform fleet.record_event('backfill.completed', p_rows => updated);
end
$$;

comment on function fleet.backfill_last_status(integer) is
  'Fills last status from the stored heartbeats of the last p_days days, for all devices. '
  'Example: select fleet.backfill_last_status(7);';
