-- UNLOGGED, so that what is erased is not written to the WAL once more.
create or replace function fleet.begin_erasure(p_partition text, p_worker text) returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_partition fleet.hb_partitions;
  v_table text := left('erasing_' || p_partition, 63);
begin
  v_partition := fleet.check_erasure_lease(p_partition, p_worker);
  if v_partition.columns is null then
    raise exception using
      errcode = 'FL002',
      message = format('nothing is erased from the archive of %s: its columns are not recorded', p_partition),
      hint = 'The archiver records them from the manifest. Run the archiver version that belongs to this database.';
  end if;
  perform fleet.require_forms(p_partition, v_partition.columns);
  execute format('drop table if exists fleet.%I', v_table);
  execute format('create unlogged table fleet.%I (%s)', v_table, (
    select string_agg(format('%I %s', c.value ->> 'name', c.value ->> 'type'), ', ' order by c.ordinality)
    from jsonb_array_elements(v_partition.columns) with ordinality c
  ));
  execute format('grant select, insert on fleet.%I to fleet_archiver', v_table);
  return format('fleet.%I', v_table);
end
$$;

comment on function fleet.begin_erasure(text, text) is
  'Creates the empty table for the rows that are erased from an archive, with the columns of the archive, and returns its name. '
  'fleet.record_erasure() counts them there and drops it.';
