create or replace function fleet.reconcile(
  p_window interval default '24 hours',
  p_max_rows integer default 5000,
  out checked bigint,
  out updated bigint,
  out elapsed_ms bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz := clock_timestamp();
begin
  if p_window is null or p_window <= interval '0' or p_max_rows is null or p_max_rows < 1 then
    raise exception using
      errcode = 'FL422',
      message = format(
        'cannot reconcile a window of %s and %s rows', coalesce(p_window::text, 'null'), coalesce(p_max_rows::text, 'null')
      ),
      hint = 'Both must be positive. Example: select * from fleet.reconcile(''24 hours'', 5000);';
  end if;
  select h.checked, h.updated into checked, updated from fleet.heal_last_status(p_window, p_max_rows) h;
  elapsed_ms := fleet.elapsed_ms(v_since);
  perform fleet.increment_counter('reconciliation_rows_updated_total', updated);
  if updated > 0 and not fleet.is_scheduled_run() then
    perform fleet.audit(
      'last_status.reconciled', 'last_status:all', p_after => jsonb_build_object('window', p_window, 'updated', updated)
    );
  end if;
  perform fleet.record_event('reconciliation.completed', p_rows => updated, p_duration_ms => elapsed_ms);
end
$$;

comment on function fleet.reconcile(interval, integer) is
  'Repairs last status where it is behind the stored heartbeats of a window; the newest heartbeat wins. What exceeds p_max_rows '
  'is left to the next run, which continues from there. Run hourly. '
  'Example: select * from fleet.reconcile();';
