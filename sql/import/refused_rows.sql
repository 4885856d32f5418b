create or replace function fleet.refused_rows(p_source regclass, p_limit integer default 100)
returns table (reason text, source_device text, ts timestamptz, source_row jsonb)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  a fleet.imports := fleet.get_import(p_source);
  v_row fleet.source_row;
begin
  for v_row in
    select r.*
    from fleet.import_ranges g
    cross join lateral fleet.read_source(a, g.first_block, g.last_block) r
    where g.source = a.source and g.rows_refused > 0 and r.reason is not null
    limit p_limit
  loop
    reason := v_row.reason;
    source_device := v_row.source_device;
    ts := (v_row.beat).ts;
    execute format('select to_jsonb(r) from %s r where r.ctid = $1', a.source) into source_row using v_row.tid;
    return next;
  end loop;
end
$$;

comment on function fleet.refused_rows(regclass, integer) is
  'The rows of a table that its import refused, unchanged, with the reason; fleet.import_refusals counts them. '
  'Example: select * from fleet.refused_rows(''public.device_heartbeats'', 20);';
