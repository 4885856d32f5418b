create or replace function fleet.create_partitions(p_from date, p_to date) returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[] := array(select a from fleet.add_partitions(p_from, p_to) a);
begin
  if cardinality(v_names) > 0 then
    perform fleet.audit(
      'partitions.created', format('partitions:%s/%s', p_from, p_to),
      p_after => jsonb_build_object(
        'partitions', cardinality(v_names), 'first', v_names[1], 'last', v_names[cardinality(v_names)]
      )
    );
  end if;
  return query select unnest(v_names);
end
$$;

comment on function fleet.create_partitions(date, date) is
  'Creates the partitions that are missing between two days, both included, and returns their names. Skips retired days, which '
  'fleet.request_restore() brings back. Example: select fleet.create_partitions(current_date, current_date + 30);';
