create or replace procedure fleet.adopt_table(
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
begin
  call fleet.import_table(p_source, p_state, p_columns, p_unknown_devices, p_oldest, p_forward, p_batch_rows, p_pause);
end
$$;

comment on procedure fleet.adopt_table(regclass, text, jsonb, text, timestamptz, boolean, integer, interval) is
  'Old name of fleet.import_table(); goes in 0.3.';
