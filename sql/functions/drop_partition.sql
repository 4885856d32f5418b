create or replace function fleet.drop_partition(p_partition text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition fleet.hb_partitions;
  v_grace interval;
  v_rows bigint;
  v_since timestamptz := clock_timestamp();
begin
  v_partition := fleet.get_partition(p_partition);
  if v_partition.state = 'dropped' then
    return true;
  end if;
  if v_partition.held_reason is not null then
    raise exception using
      errcode = 'FL002',
      message = format('partition %s is held (%s) and is not dropped', p_partition, v_partition.held_reason),
      hint = format('Release it first: select fleet.release_partition(%L);', p_partition);
  end if;
  if v_partition.state <> 'archived' then
    raise exception using
      errcode = 'FL001',
      message = format('partition %s is %s and has no proven archive; it is not dropped', p_partition, v_partition.state),
      hint = format('Run select fleet.archive_partition(%L); and wait for state archived.', p_partition);
  end if;
  select archive_grace into strict v_grace from fleet.settings;
  if now() < v_partition.proven_at + v_grace then
    return false;
  end if;

  -- Done before the export, but for what was on its way when rollups were new.
  perform fleet.finish_rollups(p_partition);

  if v_partition.relid is not null and exists (select from pg_class where oid = v_partition.relid) then
    -- Only who may write may LOCK TABLE, and nobody may write here: this changes nothing and takes the same lock.
    execute format('alter table %s disable row level security', v_partition.relid::regclass);
    execute format('select count(*) from %s', v_partition.relid::regclass) into v_rows;
    if v_rows is distinct from v_partition.row_count then
      raise exception using
        errcode = 'FL010',
        message = format(
          'partition %s has %s rows and its archive %s; it is not dropped', p_partition, v_rows, v_partition.row_count
        ),
        hint = 'Someone wrote to it after the proof. Keep it and look: fleet.hold_partition().';
    end if;
    execute format('drop table %s', v_partition.relid::regclass);
  end if;

  update fleet.hb_partitions
  set state = 'dropped', relid = null, dropped_at = now(), lease_owner = null, lease_until = null, bytes_size = 0
  where partition_name = p_partition;
  perform fleet.count_up('hb_partition_dropped_total');
  perform fleet.record_event('partition.drop', p_partition, v_partition.row_count, fleet.elapsed_ms(v_since));
  return true;
end
$$;

comment on function fleet.drop_partition(text) is
  'Drops a retired partition whose archive is proven; refuses any other. True when it is gone, false while archive_grace lasts. Example: select partition_name, fleet.drop_partition(partition_name) from fleet.partition_health where state = ''archived'';';
