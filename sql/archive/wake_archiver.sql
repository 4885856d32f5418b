create or replace function fleet.wake_archiver(p_reason text default 'work pending') returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from fleet.hb_partitions p
    where p.state in ('detached', 'archiving', 'archive_failed', 'archived') and p.held_reason is null
  ) and not exists (
    select from fleet.restore_items i where i.state in ('pending', 'running')
  ) and not exists (
    select from fleet.erasure_items i where i.archive_at is null
  ) and not exists (
    select from fleet.audit_months_due()
  ) then
    return false;
  end if;
  perform pg_notify('fleet_archiver', p_reason);
  return true;
end
$$;

comment on function fleet.wake_archiver(text) is
  'Notifies the archiver if there is work for it, and returns whether there is. Run by pg_cron every ten minutes.';
