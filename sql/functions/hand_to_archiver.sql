create or replace function fleet.hand_to_archiver(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('alter table fleet_detached.%I owner to fleet_archiver', p_partition);
  -- Read-only, for its owner too: what was proven is what is there. (The archiver's role VACUUMs and reads.)
  execute format('revoke all on fleet_detached.%I from public, fleet_owner, fleet_server, fleet_reader, fleet_dba', p_partition);
  execute format('revoke insert, update, delete, truncate, references, trigger on fleet_detached.%I from fleet_archiver', p_partition);
  execute format('grant select on fleet_detached.%I to fleet_owner, fleet_dba, fleet_reader', p_partition);
end
$$;

comment on function fleet.hand_to_archiver(text) is
  'Makes a table in fleet_detached the archiver''s, and read-only.';
