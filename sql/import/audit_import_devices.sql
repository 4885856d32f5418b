create or replace function fleet.audit_import_devices() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 100;
  v_changes jsonb;
  v_old text := 'was';
  v_new text := 'is_now';
begin
  if tg_op = 'INSERT' then
    -- By EXECUTE, because each trigger has other transition tables, and plpgsql_check looks at all branches.
    execute format('select jsonb_agg(jsonb_build_object(''after'', to_jsonb(n))) from %I n', v_new) into v_changes;
  elsif tg_op = 'DELETE' then
    execute format('select jsonb_agg(jsonb_build_object(''before'', to_jsonb(o))) from %I o', v_old) into v_changes;
  else
    execute format('
      select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(''before'', to_jsonb(o), ''after'', to_jsonb(n))))
      from %I o
      full join %I n using (source, source_device)
      where to_jsonb(o) is distinct from to_jsonb(n)
    ', v_old, v_new) into v_changes;
  end if;
  perform fleet.audit(
    g.action, 'import:' || g.source,
    case when g.devices <= c_most then c.before - 'source' end,
    case when g.devices <= c_most then c.after - 'source' else jsonb_build_object('devices', g.devices) end
  )
  from (
    select a.source, a.action, count(*) as devices, array_agg(a.change) as changes
    from (
      select e as change, coalesce(e -> 'before', e -> 'after') ->> 'source' as source,
        case
          when e -> 'before' is null then 'import_device.mapped'
          when e -> 'after' is null then 'import_device.unmapped'
          else 'import_device.changed'
        end as action
      from jsonb_array_elements(v_changes) e
    ) a
    group by a.source, a.action
  ) g
  cross join lateral (
    select e -> 'before' as before, e -> 'after' as after
    from unnest(g.changes) e
    limit case when g.devices <= c_most then c_most else 1 end
  ) c;
  return null;
end
$$;

comment on function fleet.audit_import_devices() is
  'Trigger on fleet.import_devices: records what is written by hand in fleet.audit_log, with a row for each device, or one row for '
  'more than 100.';
