-- Runs inside the old application's transactions: it must not fail, and must not lock a row that others of them would wait for.
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
      'import.forward', p_is_ok => false, p_detail => format('%s: %s; the next pass imports those rows', p_source, p_error)
    );
  end if;
exception when others then
  null;
end
$$;

comment on function fleet.record_forward_failure(text, text) is
  'Records in fleet.events, at most once a minute, that new rows of a table that is being imported could not be forwarded.';
