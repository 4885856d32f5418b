-- Called inside the old application's transactions: never an error, and no row that they would wait for each other at.
create or replace function fleet.record_forward_failure(p_source text, p_error text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.events e where e.event = 'import.forward' and e.at > clock_timestamp() - interval '1 minute'
  ) then
    perform fleet.record_event(
      'import.forward', p_is_ok => false, p_detail => format('%s: %s; its next pass takes those rows', p_source, p_error)
    );
  end if;
exception when others then
  null;
end
$$;

comment on function fleet.record_forward_failure(text, text) is
  'Says in fleet.events, once a minute at most, that rows written into a table that is adopted could not be forwarded.';
