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
  v_found record;
  v_settings fleet.settings;
  v_since timestamptz := clock_timestamp();
begin
  select * into strict v_settings from fleet.settings;
  -- Two passes: the row is locked only after the long comparison, and must still allow the drop then.
  for v_try in 1..2 loop
    if v_try = 1 then
      select * into v_partition from fleet.hb_partitions where partition_name = p_partition;
      if not found then
        v_partition := fleet.get_partition(p_partition);  -- raises the error
      end if;
    else
      v_partition := fleet.get_partition(p_partition);
    end if;
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
    if now() < v_partition.proven_at + v_settings.archive_grace
      or v_settings.proofs_needed > 1 and v_partition.confirmed_at is null then
      return false;
    end if;
    continue when v_try = 2;

    -- Usually done before the export; this covers days that were being archived when rollups were introduced.
    perform fleet.finish_rollups(p_partition);
    select * into v_found from fleet.compare_with_archive(p_partition);
  end loop;

  if v_found.differs then
    raise exception using
      errcode = 'FL010',
      message = format(
        'partition %s differs from its archive and is not dropped: it has %s rows and its archive %s (%s and %s)',
        p_partition, v_found.row_count, coalesce(v_partition.row_count, 0), v_found.in_table, v_found.in_archive
      ),
      detail = 'Only a superuser could write to it after the proof.',
      hint = format(
        'If the table is right: select fleet.retry_archive(%1$L); '
          'if the archive is right: select fleet.accept_archive(%1$L, ''why'');',
        p_partition
      );
  end if;

  perform fleet.drop_retired(p_partition, v_found.table_oid, v_since);
  return true;
end
$$;

comment on function fleet.drop_partition(text) is
  'Drops a retired partition whose archive is proven, after comparing its rows with the archive; refuses any other. Returns true '
  'when the table is gone, false during archive_grace or while a second proof is missing (settings.proofs_needed). '
  'Example: select partition_name, fleet.drop_partition(partition_name) from fleet.partition_health where state = ''archived'';';
