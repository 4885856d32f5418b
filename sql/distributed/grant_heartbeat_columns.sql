create or replace function fleet.grant_heartbeat_columns() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A distributed store has no logins that see only their cohorts. And Citus sends the grant before the column.
  null;
end
$$;

comment on function fleet.grant_heartbeat_columns() is
  'The form of fleet.grant_heartbeat_columns() for a distributed store: grants nothing.';
