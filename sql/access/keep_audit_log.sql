create or replace function fleet.keep_audit_log() returns trigger
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'DELETE' then
    if old.at < now() - (select s.audit_keep from fleet.settings s) then
      return old;
    end if;
  elsif tg_op = 'UPDATE' then
    -- The row stays, without what it says about a device that is erased.
    if new.before is null and new.after is null
      and to_jsonb(new) - '{before,after}'::text[] = to_jsonb(old) - '{before,after}'::text[]
      and exists (
        select from fleet.erasures e
        where old.target = 'device:' || e.device_id
          or old.action like 'import\_device.%' and e.device_id::text in (old.before ->> 'device_id', old.after ->> 'device_id')
      )
    then
      return new;
    end if;
  end if;
  raise exception using
    errcode = 'FL403',
    message = format('fleet.audit_log: %s is refused, because rows can only be added', tg_op),
    hint = 'Rows that are older than settings.audit_keep are deleted by fleet.prune().';
end
$$;

comment on function fleet.keep_audit_log() is
  'Trigger on fleet.audit_log: refuses to change rows, and to delete any that is not older than settings.audit_keep. Only '
  'fleet.erase_device() may remove what a row says about the device.';
