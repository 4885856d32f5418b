create or replace function fleet.audit_settings() returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- On a worker of Citus, which has its own copy of the table and nothing to write to.
  if to_regclass('fleet.hb_partitions') is null then
    return null;
  end if;
  perform fleet.audit('setting.changed', 'setting:' || n.key, to_jsonb(o.value), to_jsonb(n.value))
  from jsonb_each_text(to_jsonb(new)) n
  join jsonb_each_text(to_jsonb(old)) o using (key)
  where n.value is distinct from o.value
  order by n.key;
  return null;
end
$$;

comment on function fleet.audit_settings() is 'Trigger on fleet.settings: records every change in fleet.audit_log.';
