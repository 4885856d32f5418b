-- The key comes back before the constraint goes, so there is no moment in which a duplicate could be stored. Readers wait only
-- for the second one. If the constraint was dropped by hand, the partition takes rows, and only the key is missing.
create or replace function fleet.unsettle_table(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '300ms'
as $$
declare
  c_tries constant integer := 40;
  v_partition fleet.hb_partitions;
  v_table oid;
  v_has_key boolean := false;
  v_is_settled boolean;
  v_duplicate text;
  v_since timestamptz := clock_timestamp();
begin
  for v_try in 1..c_tries loop
    begin
      if v_has_key then
        execute format('alter table %s drop constraint device_heartbeats_settled', v_table::regclass);
        exit;
      end if;
      v_partition := fleet.get_partition(p_partition);
      v_table := fleet.table_of(v_partition);
      if v_partition.state not in ('active', 'restored') or v_table is null then
        raise exception using
          errcode = 'FL002',
          message = format('partition %s is %s, and takes no heartbeats', p_partition, v_partition.state),
          hint = 'Only a partition that is online can be opened. An archived day: select fleet.request_restore(day);';
      end if;
      v_is_settled := fleet.is_settled(v_table);
      if fleet.dedupe_index(v_table) is null then
        execute format('create unique index on %s using btree %s', v_table::regclass, fleet.dedupe_key());
      elsif not v_is_settled then
        update fleet.hb_partitions
        set settled_at = null
        where partition_name = p_partition and settled_at is not null;
        return false;
      end if;
      exit when not v_is_settled;
      v_has_key := true;
    exception when lock_not_available then
      if v_try = c_tries then
        raise exception using
          errcode = 'FL003',
          message = format('partition %s is in use: %s attempts to open it failed', p_partition, c_tries),
          hint = 'Nothing has changed. Try again when the long queries over that day have ended; see fleet.end_overdue_readers().';
      end if;
      perform pg_sleep(0.1);
    when unique_violation then
      get stacked diagnostics v_duplicate = pg_exception_detail;
      raise exception using
        errcode = 'FL002',
        message = format('partition %s took duplicates while it had no dedupe key, and is not opened', p_partition),
        detail = v_duplicate,
        hint = format(
          'As a superuser delete them, and open it again: %s select fleet.unsettle_partition(%L);',
          fleet.remove_duplicates(p_partition), p_partition
        );
    end;
  end loop;
  update fleet.hb_partitions
  set settled_at = null
  where partition_name = p_partition;
  perform fleet.record_event('partition.unsettle', p_partition, p_duration_ms => fleet.elapsed_ms(v_since));
  return true;
end
$$;

comment on function fleet.unsettle_table(text) is
  'Does what fleet.unsettle_partition() says, which also records who asked for it. Called directly by fleet.maintain(), imports '
  'and the replay of the quarantine.';
