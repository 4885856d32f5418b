create or replace function fleet.record_frozen(p_partition text, p_worker text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform fleet.check_lease(p_partition, p_worker);
  update fleet.hb_partitions
  set step = 'frozen'
  where partition_name = p_partition;
end
$$;

comment on function fleet.record_frozen(text, text) is 'Archiving, step frozen: VACUUM (FREEZE) is done.';
