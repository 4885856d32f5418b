create or replace function fleet.record_triggers() returns bigint
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with recorded as (
    insert into fleet.recorded_triggers as r (relation, trigger_name, definition)
    select g.tgrelid::regclass::text, g.tgname, pg_get_triggerdef(g.oid)
    from pg_trigger g
    join pg_class c on c.oid = g.tgrelid
    join pg_proc p on p.oid = g.tgfoid
    where c.relnamespace = 'fleet'::regnamespace and not c.relispartition
      and not g.tgisinternal and g.tgparentid = 0
      -- A trigger with a function from elsewhere is not the store's.
      and p.pronamespace in ('fleet'::regnamespace, 'fleet_guard'::regnamespace)
    on conflict (relation, trigger_name) do update
      set definition = excluded.definition
      where r.definition <> excluded.definition
    returning r.trigger_name
  )
  select count(*) from recorded;
$$;

comment on function fleet.record_triggers() is
  'Records the triggers that the migrations made, so that fleet.check() misses one that was dropped; returns how many are new or '
  'changed. Called by npm run migrate.';
