-- The archiver reads, and owns nothing: who owns a table can grant itself everything on it.
create or replace function fleet.make_read_only(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'revoke all on fleet_detached.%I from public, fleet_owner, fleet_server, fleet_archiver, fleet_reader, fleet_dba', p_partition
  );
  execute format('grant select on fleet_detached.%I to fleet_owner, fleet_archiver, fleet_dba, fleet_reader', p_partition);
  -- To VACUUM it; before PostgreSQL 17 only its owner may, whose job fleet-freeze does.
  if current_setting('server_version_num')::integer >= 170000 then
    execute format('grant maintain on fleet_detached.%I to fleet_archiver', p_partition);
  end if;
end
$$;

comment on function fleet.make_read_only(text) is
  'Leaves a retired table to be read by the archiver, the DBA and readers, and written by nobody.';
