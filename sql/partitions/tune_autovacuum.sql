-- Hot partitions grow all day, recent ones get a late row now and then, and cold ones do not change any more.
create or replace function fleet.tune_autovacuum(p_now timestamptz default now()) returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
as $$
declare
  v_partition record;
  v_count integer := 0;
begin
  for v_partition in
    select a.relid, a.partition_name, w.temperature, w.options
    from fleet.attached_partitions() a
    join pg_class c on c.oid = a.relid
    cross join fleet.settings s
    cross join lateral (
      select case
        when a.range_end > p_now then 'hot'
        when a.range_end > p_now - s.max_late then 'recent'
        else 'cold'
      end as temperature
    ) t
    cross join lateral (
      values
        -- Small steps keep the visibility map and the statistics up to date during the day.
        ('hot', array['autovacuum_analyze_scale_factor=0.02', 'autovacuum_vacuum_insert_scale_factor=0.05']),
        ('recent', array[]::text[]),
        -- The job fleet-freeze freezes it once, or marks its pages once it is settled. Vacuum against wraparound runs in any case.
        ('cold', array['autovacuum_enabled=false'])
    ) as w (temperature, options)
    where w.temperature = t.temperature
      and w.options <> array(select o from unnest(c.reloptions) as o order by o)
    order by a.range_start
  loop
    execute format(
      'alter table %s reset (autovacuum_enabled, autovacuum_analyze_scale_factor, autovacuum_vacuum_insert_scale_factor)',
      v_partition.relid::regclass
    );
    if cardinality(v_partition.options) > 0 then
      execute format('alter table %s set (%s)', v_partition.relid::regclass, array_to_string(v_partition.options, ', '));
    end if;
    update fleet.hb_partitions
    set cold_xid = case v_partition.temperature when 'cold' then pg_current_xact_id()::xid end
    where partition_name = v_partition.partition_name;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

comment on function fleet.tune_autovacuum(timestamptz) is
  'Sets the autovacuum parameters of partitions as they age: hot (today and ahead), recent (within max_late) and cold; returns '
  'how many changed. Run by fleet.nightly().';
