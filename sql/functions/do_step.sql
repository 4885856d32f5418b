create or replace function fleet.do_step(p_step text, p_partition text, p_now timestamptz) returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  case p_step
    when 'premake' then
      return (select count(*) from fleet.premake(p_now));
    when 'refresh_sizes' then
      return fleet.refresh_sizes(p_now);
    when 'set_temperatures' then
      return fleet.set_temperatures(p_now);
    when 'schedule_vacuum' then
      return fleet.schedule_vacuum();
    when 'retire' then
      return fleet.retire_partition(p_partition, p_now);
    when 'prune' then
      return fleet.prune(p_now);
    when 'retry_failed_archives' then
      return fleet.retry_failed_archives();
    when 'wake_archiver' then
      return fleet.wake_archiver('nightly')::integer;
  end case;
end
$$;

comment on function fleet.do_step(text, text, timestamptz) is
  'One step of maintenance by name; returns how many partitions or rows it concerned.';
