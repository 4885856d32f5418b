create or replace function fleet.end_import(p_source text, p_error text default null) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_error is not null then
    update fleet.imports f set last_error = p_error where f.source = p_source;
    perform fleet.record_event('import.stopped', p_is_ok => false, p_detail => format('%s: %s', p_source, p_error));
  end if;
  perform pg_advisory_unlock(hashtextextended('fleet.import', 0));
  return (select f.state from fleet.imports f where f.source = p_source);
end
$$;

comment on function fleet.end_import(text, text) is
  'Ends a run of an import: records why it stopped, if it failed, releases the lock, and returns the state.';
