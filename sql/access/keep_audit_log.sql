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
  end if;
  raise exception using
    errcode = 'FL403',
    message = format('fleet.audit_log: %s is refused, because rows can only be added', tg_op),
    hint = 'Rows that are older than settings.audit_keep are deleted by fleet.prune().';
end
$$;

comment on function fleet.keep_audit_log() is
  'Trigger on fleet.audit_log: refuses to change rows, and to delete any that is not older than settings.audit_keep.';
