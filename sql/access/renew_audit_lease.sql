create or replace function fleet.renew_audit_lease(p_month date, p_worker text, p_lease interval default '5 minutes')
returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  with renewed as (
    update fleet.audit_archives a
    set lease_until = now() + p_lease
    where a.month = p_month and a.lease_owner = p_worker
    returning a.month
  )
  select exists (select from renewed);
$$;

comment on function fleet.renew_audit_lease(date, text, interval) is
  'Extends an archiver''s lease on a month of fleet.audit_log. Returns false if the archiver no longer holds it.';
