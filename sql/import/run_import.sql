-- Each batch is a transaction: wherever a run is killed, the committed batches stay, and the cursor with them.
create or replace procedure fleet.run_import(
  p_source text,
  p_batch_rows integer,
  p_pause interval,
  inout p_state text
)
language plpgsql
as $$
declare
  v_more boolean;
  v_code text;
  v_error text;
  v_hint text;
  v_attempt integer := 0;
begin
  loop
    v_error := null;
    begin
      perform pg_catalog.pg_sleep(pg_catalog.date_part('epoch', p_pause) + 0.2 * v_attempt);
      v_more := fleet.import_step(p_source, p_batch_rows);
    exception when query_canceled or others then
      get stacked diagnostics v_code = returned_sqlstate, v_error = message_text, v_hint = pg_exception_hint;
    end;
    commit;
    if v_error is null then
      v_attempt := 0;
      exit when not v_more;
    elsif v_attempt < 20 and (v_code in ('55P03', '40P01', '40001') or v_error like '%lock timeout%') then
      v_attempt := v_attempt + 1;
    else
      p_state := fleet.end_import(p_source, v_error);
      commit;
      raise exception using
        errcode = v_code, message = v_error,
        hint = pg_catalog.concat_ws(' ', nullif(v_hint, ''), 'What was done is kept; the same call continues from there.');
    end if;
  end loop;
  p_state := fleet.end_import(p_source);
  commit;
end
$$;

comment on procedure fleet.run_import(text, integer, interval, text) is
  'Does the remaining work of an import, batch by batch; waits and tries again when a lock is busy.';
