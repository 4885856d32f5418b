create or replace function fleet.claim_audit_month(p_worker text, p_lease interval default '5 minutes')
returns table (month date, revision integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_month date;
begin
  insert into fleet.audit_archives (month)
  select d from fleet.audit_months_due() d
  on conflict do nothing;
  select a.month into v_month
  from fleet.audit_archives a
  where a.month in (select d from fleet.audit_months_due() d)
    and (a.lease_until is null or a.lease_until < now()) and (a.next_attempt_at is null or a.next_attempt_at <= now())
  order by a.month
  limit 1
  for update skip locked;
  return query
    update fleet.audit_archives a
    set lease_owner = p_worker, lease_until = now() + p_lease
    where a.month = v_month
    returning a.month, a.wanted;
end
$$;

comment on function fleet.claim_audit_month(text, interval) is
  'Gives this archiver a lease on the oldest month of fleet.audit_log that is to be archived. Returns no row if there is none.';
