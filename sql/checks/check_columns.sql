create or replace function fleet.check_columns() returns table (check_name text, status text, detail text, remedy text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_unknown text := fleet.unarchivable_columns('fleet.device_heartbeats');
begin
  check_name := 'archive_columns';
  if v_unknown is not null then
    status := 'fail';
    detail := format('the archive has no form for %s: days with this column can be neither archived nor dropped', v_unknown);
    remedy := (
      select e'-- as fleet_owner; this may rewrite every partition, and heartbeats wait until it is done\n' || string_agg(
        case
          -- A virtual column (PostgreSQL 18) has no stored values, and its expression cannot be dropped.
          when a.attgenerated = 'v' then format('alter table fleet.device_heartbeats drop column %I;', a.attname)
          when a.attgenerated <> '' then format('alter table fleet.device_heartbeats alter column %I drop expression;', a.attname)
          else format('alter table fleet.device_heartbeats alter column %I type text using %1$I::text;', a.attname)
        end,
        e'\n' order by a.attnum
      )
      from pg_attribute a
      where a.attrelid = 'fleet.device_heartbeats'::regclass and a.attnum > 0 and not a.attisdropped
        and (a.attgenerated <> '' or fleet.archive_form(format_type(a.atttypid, a.atttypmod)) is null)
    );
  elsif not exists (select from pg_event_trigger where evtname = 'fleet_guard_columns' and evtenabled = 'A') then
    status := 'warn';
    detail := 'the event trigger fleet_guard_columns is missing or not ENABLE ALWAYS: unarchivable columns are not refused';
    remedy := case
      when exists (select from pg_event_trigger where evtname = 'fleet_guard_columns') then
        e'-- as superuser\nalter event trigger fleet_guard_columns enable always;'
      else e'# in a shell, with DATABASE_URL of a superuser\nnpm run migrate'
    end;
  else
    status := 'ok';
    detail := 'every column of fleet.device_heartbeats can be archived';
  end if;
  return next;
end
$$;

comment on function fleet.check_columns() is
  'The part of fleet.check() about the columns of fleet.device_heartbeats: whether each can be archived, and whether a column '
  'that cannot would be refused.';
