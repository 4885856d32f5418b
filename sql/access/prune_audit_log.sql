-- By the clock, as the trigger that keeps the rows.
create or replace function fleet.prune_audit_log() returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_settings fleet.settings;
  v_deleted bigint;
begin
  select * into strict v_settings from fleet.settings;
  if not v_settings.audit_archive then
    delete from fleet.audit_log l where l.at < now() - v_settings.audit_keep;
    get diagnostics v_deleted = row_count;
    -- A month that lost rows is not archived again, which would lose them in the archive, too.
    update fleet.audit_archives a
    set pruned_at = now()
    where a.month::timestamptz < now() - v_settings.audit_keep and a.pruned_at is null;
    return v_deleted;
  end if;

  -- Whole months, and only those whose archive has every row. A transaction that began in the month may have ended after it was
  -- archived.
  update fleet.audit_archives a
  set wanted = a.wanted + 1
  where a.month::timestamptz + interval '1 month' < now() - v_settings.audit_keep
    and a.pruned_at is null and a.done = a.wanted
    and a.rows <> (
      select count(*) from fleet.audit_log l
      where l.at >= a.month::timestamptz and l.at < a.month::timestamptz + interval '1 month'
    );
  -- Counted and deleted in one snapshot, so that no row is deleted that was not counted.
  with pruned as (
    update fleet.audit_archives a
    set pruned_at = now()
    where a.month::timestamptz + interval '1 month' < now() - v_settings.audit_keep
      and a.pruned_at is null and a.done = a.wanted
      and a.rows = (
        select count(*) from fleet.audit_log l
        where l.at >= a.month::timestamptz and l.at < a.month::timestamptz + interval '1 month'
      )
    returning a.month
  )
  delete from fleet.audit_log l
  using pruned p
  where l.at >= p.month::timestamptz and l.at < p.month::timestamptz + interval '1 month';
  get diagnostics v_deleted = row_count;
  return v_deleted;
end
$$;

comment on function fleet.prune_audit_log() is
  'Deletes the rows of fleet.audit_log that are older than settings.audit_keep. With settings.audit_archive it deletes whole '
  'months, once their archive has all of their rows. Called by fleet.prune().';
