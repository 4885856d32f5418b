create or replace function fleet.begin_import_step(a fleet.imports) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := a.steps[1];
  v_blocks bigint := pg_relation_size(a.relid) / current_setting('block_size')::bigint;
begin
  if v_step = 'survey' then
    delete from fleet.import_ranges r where r.source = a.source;
    delete from fleet.import_refusals r where r.source = a.source;
    update fleet.import_days d set rows_found = 0, checked_at = null where d.source = a.source;
  elsif v_step = 'move' then
    update fleet.imports f
    set rows_read = 0, rows_stored = 0, rows_duplicate = 0, rows_refused = 0
    where f.source = a.source;
  end if;
  update fleet.imports f
  set step = v_step, filenode = pg_relation_filenode(a.relid), next_block = 0, end_block = v_blocks, batch_blocks = 16,
    next_partition = '-infinity', step_started_at = clock_timestamp(), step_from = 0, step_done = 0, step_rows = 0,
    step_total = coalesce(case v_step
      when 'survey' then v_blocks
      when 'move' then v_blocks
      when 'partitions' then (
        select max(d.day) - min(d.day) + 1 from fleet.import_days d where d.source = a.source and d.rows_found > 0
      )
      when 'verify' then (select sum(d.rows_found) from fleet.import_days d where d.source = a.source)
      when 'write_back' then (select count(*) from fleet.attached_partitions())
      else 1
    end, 0)
  where f.source = a.source;
end
$$;

comment on function fleet.begin_import_step(fleet.imports) is
  'Sets the cursor, counts and progress of an import to the start of its next step.';
