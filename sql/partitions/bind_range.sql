create or replace function fleet.bind_range(p_partition text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
set client_min_messages = 'warning'
as $$
declare
  v_partition fleet.hb_partitions;
  v_table oid;
  v_constraint text := 'device_heartbeats_within_range';
begin
  v_partition := fleet.get_partition(p_partition);
  v_table := fleet.table_of(v_partition);
  if v_table is null then
    raise exception using
      errcode = 'FL404',
      message = format('partition %s is %s, but its table is missing', p_partition, v_partition.state),
      hint = 'See select * from fleet.check_partitions() where status <> ''ok'';';
  end if;
  if not exists (
    select from pg_constraint where conrelid = v_table and conname = v_constraint and convalidated
  ) then
    -- Two statements, because Citus takes one change of a constraint at a time.
    execute format('alter table %s drop constraint if exists %I', v_table::regclass, v_constraint);
    execute format(
      'alter table %s add constraint %I check (ts >= %L and ts < %L)', v_table::regclass, v_constraint, v_partition.range_start,
      v_partition.range_end
    );
  end if;
end
$$;

comment on function fleet.bind_range(text) is
  'Gives a partition a CHECK constraint equal to its bounds, so that attaching it again needs no scan.';
