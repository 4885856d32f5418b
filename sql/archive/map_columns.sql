create or replace function fleet.map_columns(p_columns jsonb, p_at timestamptz default null)
returns table ("position" integer, name text, type text, today_name text, today_type text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_column record;
  v_change fleet.column_changes;
  v_applied timestamptz;
  v_names text[] := array[]::text[];
  v_name text;
begin
  for v_column in
    select c.value ->> 'name' as name from jsonb_array_elements(p_columns) with ordinality c order by c.ordinality
  loop
    v_name := v_column.name;
    v_applied := null;
    for v_change in
      select c.*
      from fleet.column_changes c
      where c.change in ('renamed', 'dropped') and (p_at is null or c.changed_at > p_at)
      order by c.change_id
    loop
      -- Changes that were recorded together happened at once: two columns may have swapped their names.
      continue when v_change.name is distinct from v_name or v_change.changed_at = v_applied;
      v_name := v_change.new_name;
      v_applied := v_change.changed_at;
      exit when v_name is null;
    end loop;
    v_names := v_names || v_name;
  end loop;

  return query
    select c.ordinality::integer, c.value ->> 'name', c.value ->> 'type', t.name, t.type
    from jsonb_array_elements(p_columns) with ordinality c
    left join lateral (
      select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attname = v_names[c.ordinality]
        and a.attnum > 0 and not a.attisdropped
        -- If two columns lead to the same one, the column that already has the name wins.
        and c.ordinality = (
          select o.ordinality
          from jsonb_array_elements(p_columns) with ordinality o
          where v_names[o.ordinality] = v_names[c.ordinality]
          order by o.value ->> 'name' = v_names[c.ordinality] desc, o.ordinality
          limit 1
        )
    ) t on true
    order by c.ordinality;
end
$$;

comment on function fleet.map_columns(jsonb, timestamptz) is
  'Maps each column of an archive to its column in fleet.device_heartbeats today, following the renames since p_at (null: all '
  'known renames). Null if the column was dropped. '
  'Example: select m.* from fleet.archives a, fleet.hb_partitions p, fleet.map_columns(p.columns, p.columns_at) m where '
  'p.partition_name = a.partition_name;';
