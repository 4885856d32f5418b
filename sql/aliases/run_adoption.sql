create or replace procedure fleet.run_adoption(
  p_source text,
  p_batch_rows integer,
  p_pause interval,
  inout p_state text
)
language plpgsql
as $$
begin
  call fleet.run_import(p_source, p_batch_rows, p_pause, p_state);
end
$$;

comment on procedure fleet.run_adoption(text, integer, interval, text) is 'Old name of fleet.run_import(); goes in 0.3.';
