-- Stable, so that it uses the caller's snapshot: its rows are compared with the store in one statement.
create or replace function fleet.read_source(a fleet.imports, p_first bigint, p_last bigint, p_since xid default null)
returns setof fleet.source_row
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set jit = off
as $$
declare
  c_rows constant text := 'select array_agg(row(q.tid, q.source_device, q.reason, q.beat)::fleet.source_row) from (%s) q';
  v_first tid := format('(%s,0)', p_first)::tid;
  v_last tid := format('(%s,0)', p_last)::tid;
  v_middle bigint := (p_first + p_last) / 2;
  v_range text := format('%s r where r.ctid >= $1 and r.ctid < $2', a.source)
    || case when p_since is not null then format(' and age(r.xmin) <= age(%L::xid)', p_since) else '' end;
  v_all text := format(c_rows, fleet.source_query(a, format('(select r.*, r.ctid from %s) r', v_range), 'r.ctid'));
  v_one text := format(
    c_rows, fleet.source_query(a, format('(select r.*, r.ctid from %s r where r.ctid = $1) r', a.source), 'r.ctid')
  );
  v_rows fleet.source_row[];
  v_tid tid;
begin
  begin
    -- All rows are read before the first is returned, because returned rows would stay even if the query failed after them.
    execute v_all into v_rows using v_first, v_last;
    return query select * from unnest(v_rows);
    return;
  exception when data_exception then
    null;  -- a value does not fit; it is searched for in halves, then row by row
  end;
  if v_middle > p_first then
    return query select * from fleet.read_source(a, p_first, v_middle, p_since);
    return query select * from fleet.read_source(a, v_middle, p_last, p_since);
    return;
  end if;
  for v_tid in execute 'select r.ctid from ' || v_range using v_first, v_last loop
    begin
      execute v_one into v_rows using v_tid;
    exception when data_exception then
      v_rows := array[row(v_tid, null, 'unreadable', null)::fleet.source_row];
    end;
    return query select * from unnest(v_rows);
  end loop;
end
$$;

comment on function fleet.read_source(fleet.imports, bigint, bigint, xid) is
  'The rows in a range of blocks of a table that is being imported, each as a heartbeat or with the reason why it is refused. '
  'p_since: only rows written by that transaction or a later one.';
