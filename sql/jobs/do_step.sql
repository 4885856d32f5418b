create or replace function fleet.do_step(p_step text, p_partition text, p_now timestamptz, p_day date default null)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  case p_step
    when 'premake' then
      v_count := (select count(*) from fleet.premake(p_now));
    when 'refresh_sizes' then
      v_count := fleet.refresh_sizes(p_now);
    when 'tune_autovacuum' then
      v_count := fleet.tune_autovacuum(p_now);
    when 'schedule_vacuum' then
      v_count := fleet.schedule_vacuum();
    when 'roll_up' then
      v_count := fleet.roll_up_day(p_day, p_now);
    when 'rebuild' then
      v_count := fleet.roll_up_day(p_day, p_now, p_late_only => true);
    when 'retire' then
      v_count := fleet.retire_partition(p_partition, p_now);
    when 'settle' then
      v_count := fleet.settle_table(p_partition, p_now);
    when 'unsettle' then
      v_count := fleet.unsettle_table(p_partition)::integer;
    when 'replay' then
      select r.stored into v_count
      from fleet.hb_partitions p
      cross join lateral fleet.replay_heartbeats(p.range_start, p.range_end) r
      where p.partition_name = p_partition;
    when 'prune' then
      v_count := fleet.prune(p_now);
    when 'note_storage' then
      v_count := fleet.note_storage(p_now);
    when 'retry_failed_archives' then
      v_count := fleet.retry_failed_archives();
    when 'wake_archiver' then
      v_count := fleet.wake_archiver('nightly')::integer;
  end case;
  return v_count;
end
$$;

comment on function fleet.do_step(text, text, timestamptz, date) is
  'Runs one step of maintenance by its name; returns the number of partitions or rows that it handled.';
