create or replace function fleet.record_frozen(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Takes seconds for a large day that the night has not rolled up. Before the row of the partition is locked, so that the
  -- lease is renewed meanwhile.
  perform fleet.finish_rollups(p_partition);
  perform fleet.check_lease(p_partition, p_worker);
  update fleet.hb_partitions
  set step = 'frozen'
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_frozen(text, text) is
  'Archiving, step frozen: VACUUM (FREEZE) is done, and the availability of its days is rolled up.';
