create or replace function fleet.import_step(p_source text, p_batch_rows integer) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '300ms'
set jit = off
as $$
declare
  a fleet.imports;
  v_step text;
  v_more boolean;
begin
  perform fleet.relink_tables();
  select f.* into a from fleet.imports f where f.source = p_source for update;
  v_step := a.steps[1];
  if v_step is null then
    return false;
  end if;
  if pg_relation_filenode(a.relid) is null then
    raise exception using
      errcode = 'FL404',
      message = format('table %s is gone', p_source),
      hint = format('What was imported is in the store. To end the import: select fleet.forget_import(%L);', p_source);
  end if;
  -- A rewrite of the table (VACUUM FULL, CLUSTER) moves its rows to other blocks, so it is read from the start.
  if a.step is distinct from v_step or (v_step in ('survey', 'move') and a.filenode <> pg_relation_filenode(a.relid)) then
    perform fleet.begin_import_step(a);
    return true;
  end if;

  case v_step
    when 'survey' then v_more := fleet.survey_blocks(a, p_batch_rows);
    when 'enroll' then v_more := fleet.enroll_unknown(a);
    when 'partitions' then v_more := fleet.prepare_partitions(a);
    when 'forward' then v_more := fleet.start_forwarding(a);
    when 'move' then v_more := fleet.move_blocks(a, p_batch_rows);
    when 'verify' then v_more := fleet.verify_days(a, p_batch_rows * 10);
    when 'unforward' then v_more := fleet.stop_forwarding(a);
    when 'write_back' then v_more := fleet.write_back_partition(a);
  end case;
  update fleet.imports f
  set updated_at = clock_timestamp(), last_error = null,
    step = case when v_more then f.step end,
    steps = case when v_more then f.steps else f.steps[2:] end
  where f.source = p_source;
  return v_more or cardinality(a.steps) > 1;
end
$$;

comment on function fleet.import_step(text, integer) is
  'Does the next batch of an import, in this transaction; false when nothing is left. Called by fleet.run_import().';
