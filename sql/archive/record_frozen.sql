create or replace function fleet.record_frozen(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- This takes seconds for a large day that fleet.nightly() has not rolled up. It happens before the partition's row is locked,
  -- so that the archiver can renew its lease meanwhile.
  perform fleet.finish_rollups(p_partition);
  perform fleet.check_lease(p_partition, p_worker);
  update fleet.hb_partitions
  set step = 'frozen'
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_frozen(text, text) is
  'Archiving, step frozen: the archiver has run VACUUM (FREEZE) if it may. Rolls up the availability of the partition''s days.';
