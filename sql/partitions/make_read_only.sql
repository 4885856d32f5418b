-- The archiver may read and owns nothing, because the owner of a table can grant itself every right on it.
create or replace function fleet.make_read_only(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format(
    'revoke all on fleet_detached.%I '
    'from public, fleet_owner, fleet_server, fleet_archiver, fleet_verifier, fleet_reader, fleet_dba',
    p_partition
  );
  execute format(
    'grant select on fleet_detached.%I to fleet_owner, fleet_archiver, fleet_verifier, fleet_dba, fleet_reader', p_partition
  );
  -- For VACUUM. Before PostgreSQL 17 only the owner may run it, in the job fleet-freeze. Since 17 even the owner needs the right
  -- MAINTAIN, which was revoked above with the others.
  perform fleet.grant_maintain();
end
$$;

comment on function fleet.make_read_only(text) is
  'Lets the archiver, the verifier, the DBA and readers read a retired table, and lets nobody write to it.';
