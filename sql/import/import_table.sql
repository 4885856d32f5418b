create or replace procedure fleet.import_table(
  p_source regclass,
  inout p_state text default null,
  p_columns jsonb default null,
  p_unknown_devices text default null,
  p_oldest timestamptz default null,
  p_forward boolean default null,
  p_batch_rows integer default 5000,
  p_pause interval default '20 milliseconds'
)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;  -- inside a transaction this fails, before the lock is taken
  if p_batch_rows is null or p_batch_rows not between 1 and 100000
    or p_pause is null or p_pause not between '0' and '1 minute' then
    raise exception using
      errcode = 'FL422',
      message = pg_catalog.format(
        'cannot import in batches of %s rows with pauses of %s', coalesce(p_batch_rows::text, 'null'),
        coalesce(p_pause::text, 'null')
      ),
      hint = 'p_batch_rows must be 1 to 100000, p_pause 0 to 1 minute.';
  end if;
  v_source := fleet.begin_import(p_source, p_columns, p_unknown_devices, p_oldest, p_forward);
  commit;
  call fleet.run_import(v_source, p_batch_rows, p_pause, p_state);
end
$$;

comment on procedure fleet.import_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval) is
  'Imports a plain table of heartbeats into fleet.device_heartbeats while both are in use. The rows of the table do not change. '
  'A call that was interrupted is continued by the next one; after a complete call, another one imports what is still missing. '
  'Look at fleet.import_plan() first. Options: p_columns => ''{"battery_pct": "battery"}'' where names differ; '
  'p_unknown_devices => ''enroll''; p_oldest; p_forward => false for no trigger on the table; p_batch_rows; p_pause. '
  'Example: call fleet.import_table(''public.device_heartbeats'');';
