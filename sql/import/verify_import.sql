create or replace procedure fleet.verify_import(p_source regclass, inout p_state text default null)
language plpgsql
as $$
declare
  v_source text;
begin
  commit;
  v_source := fleet.begin_verification(p_source);
  commit;
  call fleet.run_import(v_source, 5000, '0', p_state);
  if p_state <> 'verified' then
    raise warning using
      message = pg_catalog.format('%s differs from the store', v_source),
      hint = pg_catalog.format(
        'See select * from fleet.import_days where rows_missing + rows_changed > 0; '
          'import what is missing: call fleet.import_table(%L);',
        v_source
      );
  end if;
end
$$;

comment on procedure fleet.verify_import(regclass, text) is
  'Compares an imported table with the store, day by day. For each row of the table the store has the same content, or another '
  'heartbeat of the same device and 10-second bucket, or the row was refused. Any other row is counted in fleet.import_days, and '
  'the state stays moved. Example: call fleet.verify_import(''public.device_heartbeats'');';
